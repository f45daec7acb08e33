"""The architectures, one file each: ``bae``, ``clvq_vae``, ``topk_transcoder``; and what several of them share."""
