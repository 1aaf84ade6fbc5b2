/* The compiled CPU step: a plain C interface over flat arrays.
 *
 * Everything that comes from outside is checked at the entry of a call, before anything is read by it. A call returns
 * TOPK_OK or one of the codes below and then has changed nothing. One engine is for one thread at a time.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TOPK_API __attribute__((visibility("default")))

/* Changes whenever a structure, a field or a meaning changes. */
#define TOPK_ABI 3

enum topk_status {
    TOPK_OK = 0,
    TOPK_BAD_ABI = 1,       /* a structure has another size than in this library */
    TOPK_BAD_ARGUMENT = 2,  /* null, or a size that does not fit */
    TOPK_NO_MEMORY = 3,
    TOPK_NOT_LOADED = 4,    /* weights, tables or rotary angles are missing */
    TOPK_BAD_PIECE = 5,     /* slot, positions, rows or flags of a piece */
    TOPK_BAD_TOKEN = 6,
    TOPK_BAD_BLOCK = 7,     /* a block table names a block that does not exist */
    TOPK_BAD_EDIT = 8,      /* a row of the tables of edits */
    TOPK_BAD_SAMPLING = 9,
    TOPK_BAD_SCORE = 10,    /* a row, target or width of a requested log-probability */
    TOPK_NO_ROOM = 11,      /* an output array is too small */
    TOPK_BAD_WEIGHT = 12,   /* not finite, which the storage type cannot represent */
    TOPK_BAD_START = 13     /* a state that a step is to begin with */
};

enum topk_storage { TOPK_FLOAT32 = 0, TOPK_BFLOAT16 = 1, TOPK_INT8 = 2 };

typedef struct topk_sizes {
    int32_t struct_bytes;
    int32_t vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
    int32_t num_topk_layers, topk_k;
    int32_t select_abs; /* 1: TopK by magnitude */
    int32_t is_tied;    /* 1: the embedding is read from the unembedding */
    int32_t num_blocks, block_size; /* of the cache; block 0 has no owner */
    int32_t max_rows, num_slots, max_edits, max_conditions;
    int32_t num_threads;
    int32_t storage; /* topk_storage, of all matrices */
    float rms_norm_eps;
} topk_sizes;

/* Tables of the caller, one slot per sequence; they must outlive the engine. Columns as in topk_model/editing.py. */
typedef struct topk_tables {
    int64_t struct_bytes;
    const int64_t *edit_ints;  /* [slots][max(1, topk layers)][max_edits][9] */
    const float *edit_floats;  /* [slots][max(1, topk layers)][max_edits][3] */
    const int64_t *conditions; /* [slots][max(1, topk layers)][max_edits][max_conditions][3] */
    const float *thresholds;   /* [slots][max(1, topk layers)][max_edits][max_conditions] */
    const int64_t *num_edits;      /* [slots][max(1, topk layers)] */
    const int64_t *num_conditions; /* [slots][max(1, topk layers)], the maximum of any edit */
    const int64_t *num_interventions; /* [slots] */
    double *tally;          /* [slots][max_edits][6], added to */
    int64_t *num_positions; /* [slots][max_edits], added to */
    int64_t *first, *last;  /* [slots][max_edits] */
    const float *temperature, *top_p, *min_p, *presence, *frequency; /* [slots] */
    const int64_t *top_k, *seed; /* [slots] */
    const uint8_t *has_bias;     /* [slots] */
    const float *bias;           /* [slots][vocab_size] */
    float *counts;               /* [slots][vocab_size] of generated tokens, added to */
    const uint8_t *is_special;   /* [vocab_size] */
    const int32_t *block_tables; /* [slots][num_blocks] */
} topk_tables;

enum topk_piece_flags {
    TOPK_DRAWS = 1,   /* a token is drawn after the last row */
    TOPK_COUNTS = 2,  /* its edits are counted in the receipts */
    TOPK_SCORES = 4   /* the drawn token's log-probability and the num_top most probable ones are requested */
};

typedef struct topk_piece {
    int32_t slot;
    int32_t start, count; /* positions [start, start + count) of the sequence, one row each */
    int32_t flags;
    int32_t num_drawn;  /* tokens the sequence has drawn before */
    int32_t num_top;
    int32_t trace_start, trace_count; /* rows of the piece whose states are requested */
} topk_piece;

typedef struct topk_score {
    int32_t row;    /* of the step */
    int32_t target; /* the token whose log-probability after that row is requested */
    int32_t num_top;
} topk_score;

typedef struct topk_step {
    int64_t struct_bytes;
    int64_t num_pieces, num_rows, num_scores;
    const topk_piece *pieces;
    const int32_t *token_ids; /* [num_rows], the pieces' rows one after the other */
    const topk_score *scores;
    /* Results. */
    int32_t *drawn_ids; /* [num_pieces], -1 if none was due */
    uint8_t *is_finite; /* [num_pieces], 0: logits or states hold infinities or NaN, and the rest is meaningless */
    float *logprobs;    /* [num_pieces + num_scores]: of the drawn tokens, then of the targets; nats */
    int64_t top_room;
    int32_t *top_ids; /* num_top of each piece that scores, then of each score; most probable first */
    float *top_logprobs;
    int64_t trace_room; /* at least traced rows * topk layers * topk_trace_width() entries */
    int64_t num_traced; /* out: entries written */
    int64_t *trace_offsets; /* [traced rows * topk layers + 1] where the entries of each row and layer begin, and end */
    int32_t *trace_indices; /* [entries], ascending within a row */
    float *trace_values;
    /* A step may begin after a TopK layer: what each row's state was in the layers before `first_layer`, which is at
     * most the number of TopK layers. The rows' keys and values of those layers must stand in the cache already. */
    int64_t first_layer;
    int64_t num_start;             /* entries of start_indices and start_values */
    const int32_t *start_counts;   /* [num_rows][first_layer] */
    const int32_t *start_indices;  /* ascending within a state, as in a trace */
    const float *start_values;
    const uint8_t *wiped; /* null, or [num_rows][topk layers]: 1 empties the row's state after that layer's edits */
} topk_step;

typedef struct topk_engine topk_engine;

/* Which weight a call to topk_load passes; every matrix is [outputs][inputs], row-major. */
enum topk_weight {
    TOPK_EMBEDDING, TOPK_UNEMBEDDING, TOPK_FINAL_NORM,
    TOPK_NORM1, TOPK_Q, TOPK_K, TOPK_V, TOPK_O, TOPK_NORM2, TOPK_GATE, TOPK_UP, TOPK_DOWN
};

TOPK_API int topk_abi(void);
/* "avx512", "avx2", "neon" or "portable". */
TOPK_API const char *topk_isa(void);
TOPK_API int topk_create(const topk_sizes *sizes, topk_engine **engine);
/* An engine over the weights of another, which may be destroyed first: its own cache, tables and threads, for steps
 * beside the other's. Sizes of weights must be those of the other, which must be loaded. */
TOPK_API int topk_create_beside(const topk_engine *other, const topk_sizes *sizes, topk_engine **engine);
TOPK_API void topk_destroy(topk_engine *engine);
/* The array may be freed after the call. `layer` is ignored if a weight has none. */
TOPK_API int topk_load(topk_engine *engine, int weight, int layer, const float *data, int64_t rows, int64_t columns);
TOPK_API int topk_bind(topk_engine *engine, const topk_tables *tables);
/* Cosines and sines [positions][head_dim / 2], copied; the sequences may reach as far as `positions`. */
TOPK_API int topk_rope(topk_engine *engine, const float *cosines, const float *sines, int64_t positions);
/* Maximum number of entries of one state after a TopK layer and its edits. */
TOPK_API int64_t topk_trace_width(const topk_engine *engine);
/* Copy the keys and values of a block of the cache, of all layers, to another. */
TOPK_API int topk_copy_block(topk_engine *engine, int32_t from, int32_t to);
/* Run one step. The numbers of a piece depend neither on the other pieces nor on the number of threads. */
TOPK_API int topk_run(topk_engine *engine, topk_step *step);
/* Force one of two ways to the same numbers, for tests: 0 the engine decides, 1 always sparse, 2 never. */
TOPK_API int topk_prefer_sparse(topk_engine *engine, int how);

#ifdef __cplusplus
}
#endif
