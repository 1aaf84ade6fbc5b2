// What a step reads is checked here, all of it, before the step begins.
#include <cmath>
#include <cstring>
#include <vector>

#include "engine.h"

namespace topk {
namespace {

bool is_in(int64_t value, int64_t end) { return value >= 0 && value < end; }

bool is_count(int64_t value, int64_t most) { return value >= 1 && value <= most; }

int check_edits(const Engine &engine, int64_t slot) {
    const topk_sizes &sizes = engine.sizes;
    const topk_tables &tables = engine.tables;
    const int64_t num_interventions = tables.num_interventions[slot];
    if (!is_in(num_interventions, sizes.max_edits + 1)) return TOPK_BAD_EDIT;
    if (!num_interventions) return TOPK_OK;
    for (int64_t layer = 0; layer < sizes.num_topk_layers; ++layer) {
        const int64_t place = slot * engine.table_layers + layer;
        const int64_t num_conditions = tables.num_conditions[place];
        if (!is_in(tables.num_edits[place], sizes.max_edits + 1)) return TOPK_BAD_EDIT;
        if (!is_in(num_conditions, sizes.max_conditions + 1)) return TOPK_BAD_EDIT;
        for (int64_t e = 0; e < tables.num_edits[place]; ++e) {
            const int64_t at = place * sizes.max_edits + e;
            const int64_t *ints = tables.edit_ints + at * NUM_INTS;
            if (!is_in(ints[OP], NUM_OPS) || !is_in(ints[NEURON], sizes.hidden_size) ||
                !is_in(ints[RECEIPT], num_interventions))
                return TOPK_BAD_EDIT;
            for (int64_t c = 0; c < num_conditions; ++c) {
                const int64_t *condition =
                    tables.conditions + (at * sizes.max_conditions + c) * NUM_CONDITION_INTS;
                if (condition[TEST] == NO_TEST) continue;
                if (!is_in(condition[TEST], NUM_TESTS) || !is_in(condition[COND_LAYER], layer + 1) ||
                    !is_in(condition[COND_NEURON], sizes.hidden_size))
                    return TOPK_BAD_EDIT;
            }
        }
    }
    return TOPK_OK;
}

int check_sampling(const Engine &engine, int64_t slot) {
    const topk_tables &tables = engine.tables;
    if (!(tables.temperature[slot] >= 0.0f) || !std::isfinite(tables.temperature[slot])) return TOPK_BAD_SAMPLING;
    if (!(tables.top_p[slot] >= 0.0f) || !(tables.min_p[slot] >= 0.0f)) return TOPK_BAD_SAMPLING;
    if (tables.top_k[slot] < 1) return TOPK_BAD_SAMPLING;
    if (!std::isfinite(tables.presence[slot]) || !std::isfinite(tables.frequency[slot])) return TOPK_BAD_SAMPLING;
    return TOPK_OK;
}

int check_piece(const Engine &engine, const topk_piece &piece) {
    const topk_sizes &sizes = engine.sizes;
    if (!is_in(piece.slot, sizes.num_slots) || piece.start < 0 || piece.count < 1) return TOPK_BAD_PIECE;
    const int64_t end = int64_t(piece.start) + piece.count;
    if (end > engine.num_positions || end > int64_t(sizes.num_blocks) * sizes.block_size) return TOPK_BAD_PIECE;
    if (piece.flags & ~(TOPK_DRAWS | TOPK_COUNTS | TOPK_SCORES)) return TOPK_BAD_PIECE;
    if ((piece.flags & TOPK_SCORES) && !(piece.flags & TOPK_DRAWS)) return TOPK_BAD_PIECE;
    if (piece.num_drawn < 0 || !is_in(piece.num_top, int64_t(sizes.vocab_size) + 1)) return TOPK_BAD_PIECE;
    if (piece.trace_start < 0 || piece.trace_count < 0) return TOPK_BAD_PIECE;
    if (int64_t(piece.trace_start) + piece.trace_count > piece.count) return TOPK_BAD_PIECE;
    const int32_t *table = engine.table_of(piece.slot);
    for (int64_t block = 0; block * sizes.block_size < end; ++block)
        if (table[block] < 1 || table[block] > sizes.num_blocks) return TOPK_BAD_BLOCK;
    if (int status = check_edits(engine, piece.slot)) return status;
    return piece.flags & TOPK_DRAWS ? check_sampling(engine, piece.slot) : int(TOPK_OK);
}

int check_start(const Engine &engine, const topk_step &step) {
    const int64_t num_layers = step.first_layer;
    if (!is_in(num_layers, engine.sizes.num_topk_layers + 1)) return TOPK_BAD_START;
    if (!num_layers) return TOPK_OK;
    if (!step.start_counts || (step.num_start && (!step.start_indices || !step.start_values))) return TOPK_BAD_START;
    int64_t at = 0;
    for (int64_t i = 0; i < step.num_rows * num_layers; ++i) {
        const int64_t count = step.start_counts[i];
        if (!is_in(count, engine.state_width + 1) || at + count > step.num_start) return TOPK_BAD_START;
        for (int64_t before = -1, end = at + count; at < end; before = step.start_indices[at++])
            if (step.start_indices[at] <= before || step.start_indices[at] >= engine.sizes.hidden_size)
                return TOPK_BAD_START;
    }
    return at == step.num_start ? TOPK_OK : TOPK_BAD_START;
}

}  // namespace

int check_step(const Engine &engine, const topk_step &step) {
    const topk_sizes &sizes = engine.sizes;
    if (step.struct_bytes != sizeof(topk_step)) return TOPK_BAD_ABI;
    if (!engine.is_bound || engine.weights->num_loaded != engine.weights->num_to_load || !engine.num_positions) return TOPK_NOT_LOADED;
    if (!is_count(step.num_pieces, sizes.num_slots) || !is_count(step.num_rows, sizes.max_rows))
        return TOPK_BAD_ARGUMENT;
    if (!is_in(step.num_scores, int64_t(sizes.max_rows) + 1)) return TOPK_BAD_ARGUMENT;
    if (!step.pieces || !step.token_ids || !step.drawn_ids || !step.is_finite || !step.logprobs)
        return TOPK_BAD_ARGUMENT;
    if (step.num_scores && !step.scores) return TOPK_BAD_ARGUMENT;
    std::vector<bool> is_taken(size_t(sizes.num_slots));
    int64_t num_rows = 0, num_traced = 0, num_top = 0;
    for (int64_t i = 0; i < step.num_pieces; ++i) {
        const topk_piece &piece = step.pieces[i];
        if (int status = check_piece(engine, piece)) return status;
        if (is_taken[size_t(piece.slot)]) return TOPK_BAD_PIECE;
        is_taken[size_t(piece.slot)] = true;
        num_rows += piece.count;
        num_traced += piece.trace_count;
        if (piece.flags & TOPK_SCORES) num_top += piece.num_top;
    }
    if (num_rows != step.num_rows) return TOPK_BAD_PIECE;
    if (int status = check_start(engine, step)) return status;
    for (int64_t i = 0; i < step.num_rows; ++i)
        if (!is_in(step.token_ids[i], sizes.vocab_size)) return TOPK_BAD_TOKEN;
    for (int64_t i = 0; i < step.num_scores; ++i) {
        const topk_score &score = step.scores[i];
        if (!is_in(score.row, step.num_rows) || !is_in(score.target, sizes.vocab_size) ||
            !is_in(score.num_top, int64_t(sizes.vocab_size) + 1))
            return TOPK_BAD_SCORE;
        num_top += score.num_top;
    }
    if (num_top > step.top_room || (num_top && (!step.top_ids || !step.top_logprobs))) return TOPK_NO_ROOM;
    if (num_traced * sizes.num_topk_layers * engine.state_width > step.trace_room) return TOPK_NO_ROOM;
    if (num_traced && sizes.num_topk_layers && (!step.trace_offsets || !step.trace_indices || !step.trace_values))
        return TOPK_NO_ROOM;
    return TOPK_OK;
}

}  // namespace topk
