"""TopK language models: the model, its training, its checkpoints, and all that is true of it without a server.

`topk_model.checkpoints.load_model` loads one; with this imported, transformers' AutoModelForCausalLM does so, too.
"""

from topk_model.auto import register_when_imported

register_when_imported()
