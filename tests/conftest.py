import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The GPU head's kernels run in Triton's interpreter, which must be on before Triton is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
