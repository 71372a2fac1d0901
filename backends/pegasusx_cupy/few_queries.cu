// Attention of few queries to many keys, as in decoding: softmax(q k^T / sqrt(F)) v.
//
// A thread block is a warp. It takes ROWS queries of a head and a part of the keys, whose numbers it reads once, at the
// speed of the memory. LANES lanes share a key, and a vector of its features each: a warp computes 32 / LANES keys side by
// side. The softmax is online (arXiv 1805.02867): each of these groups of lanes has, for each query, its largest score so
// far, the sum of its weights and its weighted values. The groups are merged at the end, the parts by merge_parts.
//
// Macros: ELEMENT, the type of the arrays' numbers, and REAL, that of sums; LARGEST, the largest number of REAL;
// HEAD_DIM, F; ROWS; LANES, a power of 2; THREADS, of a thread block that merges parts; HALF_PRECISION, where ELEMENT is
// float16 or bfloat16.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#include "vectors.cuh"

#define GROUPS (32 / LANES)
#define VECTORS ((HEAD_DIM + VECTOR - 1) / VECTOR)  // of a row's features; zeros fill the last one
#define WIDTH ((VECTORS + LANES - 1) / LANES * VECTOR)  // features of a lane
#define KEYS 4  // of a group, whose scores are computed before its sums are rescaled

__device__ REAL exp_of(REAL difference) {
#ifdef HALF_PRECISION
    return exp2_of(difference * 1.4426950408889634f);
#else
    return exp(difference);
#endif
}

#include "merge_parts.cuh"

// The features of a lane.
struct Features {
    Vector vectors[WIDTH / VECTOR];
};

__device__ REAL feature_of(const Features& features, int i) {
    return number(features.vectors[i / VECTOR].at[i % VECTOR]);
}

// Zeros beyond the last feature, and where there is no row.
__device__ Features load_features(const ELEMENT* row) {
    Features features;
#pragma unroll
    for (int v = 0; v < WIDTH / VECTOR; ++v)
        features.vectors[v] = load(row, threadIdx.x % LANES + v * LANES, HEAD_DIM);
    return features;
}

// Add up the values of the lanes of a key.
__device__ REAL over_key(REAL value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2)  // [lanes of a key]
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Whether any key of a row is visible, from a key on.
__device__ bool sees_any(const unsigned char* visible, int num_keys, int first) {
    for (; first < num_keys; first += 32) {
        const int key = first + threadIdx.x;
        if (__any_sync(0xffffffffu, key < num_keys && visible[key])) return true;
    }
    return false;
}

// Arrays: queries and context (B, L, H, F); keys and values (B, H, X, F) with any steps, in numbers, from batch row to
// batch row, head to head and key to key; visible null, or (B, L, X) where a query sees a key, with its steps in bytes
// from batch row to batch row and query to query. A query that sees no key attends to all of them evenly.
// With several parts the sums (parts, B, L, H, F), largest and totals (parts, B, L, H) are written, else the context.
// Grid: (parts x groups of queries, H, B).
extern "C" __global__ void few_queries(const ELEMENT* queries, const ELEMENT* keys, const ELEMENT* values,
                                       const unsigned char* visible, ELEMENT* context, REAL* sums, REAL* largest,
                                       REAL* totals, int num_queries, int num_keys, int part_size, int num_parts,
                                       long long key_batch, long long key_head, long long key_step,
                                       long long value_batch, long long value_head, long long value_step,
                                       long long visible_batch, long long visible_query) {
    const int num_groups = (num_queries + ROWS - 1) / ROWS;  // thread blocks with the same keys run at the same time
    const int part = blockIdx.x / num_groups, first_query = blockIdx.x % num_groups * ROWS;
    const int head = blockIdx.y, num_heads = gridDim.y, group = threadIdx.x / LANES;
    const int stop_key = (part + 1) * part_size < num_keys ? (part + 1) * part_size : num_keys;
    const long long first_row = (long long)blockIdx.z * num_queries;  // of the batch row's queries
    const REAL scale = (REAL)1 / sqrt((REAL)HEAD_DIM);  // [value of the scale]
    keys += blockIdx.z * key_batch + head * key_head;  // [place of the keys]
    values += blockIdx.z * value_batch + head * value_head;

    REAL q[ROWS][WIDTH], context_sums[ROWS][WIDTH], largest_score[ROWS], total[ROWS];
    const unsigned char* shown[ROWS];  // null where all keys are
    bool sees_none[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int query = first_query + r < num_queries ? first_query + r : num_queries - 1;  // one twice, not stored twice
        const Features features = load_features(queries + ((first_row + query) * num_heads + head) * HEAD_DIM);
        shown[r] = visible ? visible + blockIdx.z * visible_batch + query * visible_query : nullptr;  // [row of the mask]
        largest_score[r] = -LARGEST;
        total[r] = 0;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            q[r][i] = feature_of(features, i) * scale;  // [scale]
            context_sums[r][i] = 0;
        }
    }
    // Most queries see one of the first keys, which are read for all queries at once.
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
        sees_none[r] = visible && !__any_sync(0xffffffffu, threadIdx.x < num_keys && shown[r][threadIdx.x]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (sees_none[r]) sees_none[r] = !sees_any(shown[r], num_keys, 32);  // [later keys]
        if (sees_none[r]) shown[r] = nullptr;
    }

    for (int first = part * part_size + group; first - group < stop_key; first += KEYS * GROUPS) {  // [tiles of keys]
        Features k_features[KEYS], v_features[KEYS];  // all are read before the first one is used
#pragma unroll
        for (int k = 0; k < KEYS; ++k) {
            const int key = first + k * GROUPS;
            k_features[k] = load_features(key < stop_key ? keys + key * key_step : nullptr);
            v_features[k] = load_features(key < stop_key ? values + key * value_step : nullptr);
        }
        REAL scores[ROWS][KEYS];
#pragma unroll
        for (int k = 0; k < KEYS; ++k)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                REAL score = 0;
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) score += q[r][i] * feature_of(k_features[k], i);
                score = over_key(score);
                scores[r][k] = sees_none[r] ? 0 : score;  // [nothing is visible]
            }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            REAL new_largest = largest_score[r];
            bool is_visible[KEYS];
#pragma unroll
            for (int k = 0; k < KEYS; ++k) {
                const int key = first + k * GROUPS;
                is_visible[k] = key < stop_key && (!shown[r] || shown[r][key]);  // [visible]
                if (is_visible[k] && scores[r][k] > new_largest) new_largest = scores[r][k];
            }
            const REAL rescaling = exp_of(largest_score[r] - new_largest);
            total[r] *= rescaling;  // [rescale the total]
#pragma unroll
            for (int k = 0; k < KEYS; ++k) {
                scores[r][k] = is_visible[k] ? exp_of(scores[r][k] - new_largest) : (REAL)0;
                total[r] += scores[r][k];
            }
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) context_sums[r][i] *= rescaling;  // [rescale the sums]
            largest_score[r] = new_largest;
        }
#pragma unroll
        for (int k = 0; k < KEYS; ++k)
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) context_sums[r][i] += scores[r][k] * feature_of(v_features[k], i);
    }

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        REAL row_largest = largest_score[r];
#pragma unroll
        for (int step = LANES; step < 32; step *= 2) {
            const REAL other = __shfl_xor_sync(0xffffffffu, row_largest, step);
            row_largest = other > row_largest ? other : row_largest;  // [largest of the groups]
        }
        const REAL rescaling = exp_of(largest_score[r] - row_largest);
        total[r] *= rescaling;
#pragma unroll
        for (int step = LANES; step < 32; step *= 2) total[r] += __shfl_xor_sync(0xffffffffu, total[r], step);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            context_sums[r][i] *= rescaling;  // [rescale the groups]
#pragma unroll
            for (int step = LANES; step < 32; step *= 2)
                context_sums[r][i] += __shfl_xor_sync(0xffffffffu, context_sums[r][i], step);
        }
        const int query = first_query + r;
        if (group > 0 || query >= num_queries) continue;
        const long long row = (first_row + query) * num_heads + head;
        const long long part_row = part * ((long long)gridDim.z * num_queries * num_heads) + row;  // [row of a part]
        if (num_parts > 1 && threadIdx.x == 0) {
            largest[part_row] = row_largest;
            totals[part_row] = total[r];
        }
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const int feature = (threadIdx.x + i / VECTOR * LANES) * VECTOR + i % VECTOR;
            if (feature >= HEAD_DIM) continue;
            if (num_parts > 1)
                sums[part_row * HEAD_DIM + feature] = context_sums[r][i];
            else
                context[row * HEAD_DIM + feature] = rounded(context_sums[r][i] / total[r]);  // [normalization]
        }
    }
}
