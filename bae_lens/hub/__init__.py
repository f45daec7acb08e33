"""Saved SAEs to the Hugging Face Hub, from where ``SAE.from_pretrained`` loads them: ``upload_saes``."""

from bae_lens.hub.upload import Uploaded, upload_saes

__all__ = ["Uploaded", "upload_saes"]
