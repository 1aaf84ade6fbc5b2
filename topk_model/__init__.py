"""TopK language models: the model, its training, its checkpoints, and all that is true of it without a server.

`topk_model.checkpoints.load_model` loads one. Importing `topk_model.modeling` registers the model with transformers'
Auto classes.
"""
