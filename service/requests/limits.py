"""Every limit on requests, and the defaults of fields that are left out. Knows no field."""

from topk_model.interventions import MAX_EDITS

MAX_BODY_BYTES = 4 * 2**20
MAX_FIELDS = 200  # of one object; no valid request has half as many
MAX_NAME_CHARS = 200  # of a model's name or a user's label
MAX_PROMPTS = 128
MAX_STREAM_PROMPTS = 4096  # of an activations stream, which returns each result as soon as it is ready
MAX_N = 16
MAX_ROWS = 128  # sequences of one request: prompts × n × variants
MAX_TOKENS = 2**20  # of one sequence; the model's context is the tighter limit
MAX_POSITION = 2**31 - 1
MAX_TOKENIZED = 2**18  # characters to tokenize, or tokens to detokenize, at once
MAX_GENERATED_TOKENS = 32_768  # of one request: rows × max_tokens
MAX_TRACE_ENTRIES = 2**21  # of one request: rows × traced tokens × layers × kept neurons
MAX_STOP = 64
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_INTERVENTIONS = MAX_EDITS
#: Largest factor on a preset's value.
MAX_STRENGTH = 10.0
MAX_ABS_VALUE = 1e4  # of an intervention
MAX_MESSAGES = 256
MAX_NEURONS = 500  # of one page of a list, or of a search's results
DEFAULT_NEURONS = 50
MAX_OFFSET = 2**31 - 1
MAX_CONTRAST_TEXTS = 16  # of each side; each is a sequence for the engine
MAX_DIFFERENCES = 100  # neurons named of two variants
#: Positions that an attribution computes: for each ablated neuron those from its own to the target.
MAX_ATTRIBUTION_ROWS = 2**21
DEFAULT_TOP_NEURONS = 20
MAX_NODES = 32  # neurons of an attribution's graph
DEFAULT_NODES = 16
MAX_LEVER_WORDS = 32
MAX_WORD_CHARS = 64
MAX_LEVER_NODES = 48  # tokens of all words of a search that are not a word's last
MAX_LEVER_TEXT_TOKENS = 2048  # of all texts of a search
MAX_LEVERS = 10  # of one reply
MAX_LEVER_TOKENS = 128  # of each continuation
MAX_LEVER_COST = 2.0  # nats per token
MIN_TEMPERATURE = 0.01  # anything lower counts as 0
MAX_TIMEOUT_S = 3600.0
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_MAX_TOKENS = 16
