"""From text to activations: where they stand in a model, which tokens count, and what they are kept in.

* where: ``hook_points``, ``running_pass`` (the forward pass that is under way);
* which tokens: ``special_tokens``, ``outlier_tokens``;
* of what: ``texts``, ``labelled_texts`` (with ``label_columns``), ``text_batch``;
* in what: ``text_store`` (SAELens' store), ``sentence_store`` (each text by itself), ``paired_activations`` (two hook
  points), ``collection`` and ``replay`` (one pass, kept), ``held_out`` (the model and text of a saved SAE).
"""
