// Attention from a tile of queries to a range of keys, on tensor cores: float16, bfloat16 or TF32, with sums in float32.
//
// As in attend_fma.cuh, the softmax is computed online. Each warp takes 16 * ROW_TILES queries. A tile of KEYS (a
// multiple of 16) keys and values is in shared memory while the next one is copied there. The queries, the scores of
// the tile and the sums are in registers, as fragments whose layout ptx.cuh gives: lane l has the queries l / 4 and
// l / 4 + 8 of each 16, of the keys and features 2 (l % 4), 2 (l % 4) + 1 of each 8. The four lanes of a row are
// adjacent. The scores of a product are, rounded, the first operand of the next one: no lane needs another's. In TF32 that
// operand would have the keys l % 4 and l % 4 + 4, which are taken to be 2 (l % 4) and 2 (l % 4) + 1, of weights and values.

#define ROW_TILES (QUERIES / (THREADS / 32 * 16))    // of 16 queries for each warp
#define FEATURES ((HEAD_DIM + 15) / 16 * 16)         // zeros fill the last 16
#define STRIDE (FEATURES + VECTOR)                   // 16 bytes more: eight rows lie in different banks
#define STEP (2 * VECTOR)                            // features of a product
#define LOG2_E 1.4426950408889634f

// The weight of a score, from its difference to the largest one of its row. The difference is multiplied, not the scores:
// a compiler may fuse a product with the subtraction after it, and then equal scores of a large size would differ.
__device__ float exp_of(float difference) {
    const float scale = LOG2_E / sqrt((float)HEAD_DIM);  // [scale] of the scores, for powers of two
    return exp2_of(difference * scale);
}

// A tile of keys and values, and which of the keys are visible.
struct Tile {
    alignas(16) ELEMENT keys[KEYS][STRIDE], values[KEYS][STRIDE];
    alignas(4) unsigned char visible[KEYS];
};

__device__ void begin_to_load(Tile& tile, const Rows& rows, const KeysAndValues& source, int first_key) {
    for (int i = threadIdx.x; i < KEYS * FEATURES / VECTOR; i += THREADS) {
        int key = i / (FEATURES / VECTOR), feature = i % (FEATURES / VECTOR) * VECTOR;
        const ELEMENT* k = features_of(source.keys, source.global_keys, source, rows, first_key + key);
        const ELEMENT* v =
            features_of(source.values, source.global_values, source, rows, first_key + key);  // [values]
        if (HEAD_DIM % VECTOR == 0) {
            bool exists = k && feature < HEAD_DIM;
            begin_copy(&tile.keys[key][feature], exists ? k + feature : source.keys, exists);
            begin_copy(&tile.values[key][feature], exists ? v + feature : source.values, exists);
        } else  // rows are not aligned
            for (int f = feature; f < feature + VECTOR; ++f) {
                bool exists = k && f < HEAD_DIM;
                tile.keys[key][f] = exists ? k[f] : 0;
                tile.values[key][f] = exists ? v[f] : 0;
            }
    }
    if (threadIdx.x < KEYS) tile.visible[threadIdx.x] = is_visible(source, rows, first_key + threadIdx.x);
}

// Four bytes of a query as a fragment has them, from a feature on: two numbers in half precision, else one.
__device__ unsigned query_fragment(const Rows& rows, int num_heads, int query, int feature) {
    if (query >= rows.stop) return 0;
    const ELEMENT* q = rows.queries + place(rows.length, num_heads, blockIdx.z, blockIdx.y, query) * HEAD_DIM;
#ifdef TF32
    return feature < HEAD_DIM ? rounded_tf32(q[feature]) : 0;
#else
    if (HEAD_DIM % VECTOR == 0) return feature < HEAD_DIM ? *(const unsigned*)(q + feature) : 0;
    unsigned low = feature < HEAD_DIM ? q[feature] : 0, high = feature + 1 < HEAD_DIM ? q[feature + 1] : 0;
    return low | high << 16;
#endif
}

// The keys first_key … + 15, features `feature` … + STEP - 1: of the first eight keys, both halves of the features, then of
// the others.
__device__ void load_keys(unsigned (&b)[4], const Tile& tile, int first_key, int feature) {
    const int lane = threadIdx.x % 32;
    load_matrices(b, &tile.keys[first_key + lane % 8 + lane / 16 * 8][feature + lane / 8 % 2 * VECTOR]);
#ifdef TF32
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = rounded_tf32(__int_as_float(b[i]));  // [round the keys]
#endif
}

// Add the values of the keys first_key … + 15, times the weights in a warp's rows, to the sums.
__device__ void add_values(float (&sums)[ROW_TILES][FEATURES / 8][4], const float (&scores)[ROW_TILES][KEYS / 8][4],
                           const Tile& tile, int first_key) {
    const int lane = threadIdx.x % 32;
#ifdef TF32
#pragma unroll
    for (int k = first_key / 8; k < first_key / 8 + 2; ++k) {
        unsigned weights[ROW_TILES][4];
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) weights[r][i] = rounded_tf32(scores[r][k][i % 2 * 2 + i / 2]);  // [weights]
#pragma unroll
        for (int f = 0; f < FEATURES / 8; ++f) {
            const float* value = &tile.values[8 * k + lane % 4 * 2][8 * f + lane / 4];
            const unsigned first = rounded_tf32(value[0]), second = rounded_tf32(value[STRIDE]);
#pragma unroll
            for (int r = 0; r < ROW_TILES; ++r) multiply_add(sums[r][f], weights[r], first, second);
        }
    }
#else
    const int k = first_key / 16;
    unsigned weights[ROW_TILES][4];
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* score = &scores[r][2 * k + i / 2][i % 2 * 2];
            weights[r][i] = rounded_pair(score[0], score[1]);
        }
#pragma unroll
    for (int f = 0; f < FEATURES / 16; ++f) {
        unsigned b[4];  // of features 0 to 7, keys 0 to 7 and 8 to 15; then of features 8 to 15
        load_transposed_matrices(b, &tile.values[16 * k + lane % 16][16 * f + lane / 16 * 8]);
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
            multiply_add(sums[r][2 * f], weights[r], b[0], b[1]);
            multiply_add(sums[r][2 * f + 1], weights[r], b[2], b[3]);
        }
    }
#endif
}

__device__ float row_max(float value) {
    for (int lane = 2; lane > 0; lane /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, lane);
        value = other > value ? other : value;
    }
    return value;
}

__device__ float row_sum(float value) {
    for (int lane = 2; lane > 0; lane /= 2)  // [row sum]
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

__device__ void attend(const Rows& rows, const KeysAndValues& source) {
    __shared__ Tile tiles[2];
    const int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    const int first = rows.first + threadIdx.x / 32 * 16 * ROW_TILES;  // of the warp's queries
    const float infinity = __int_as_float(0x7f800000);

    begin_to_load(tiles[0], rows, source, rows.first_key);

    unsigned q[ROW_TILES][FEATURES / STEP][4];
    float sums[ROW_TILES][FEATURES / 8][4], largest[ROW_TILES][2], total[ROW_TILES][2];  // of rows `row`, `row` + 8
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
        for (int f = 0; f < FEATURES / STEP; ++f)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                q[r][f][i] = query_fragment(rows, source.num_heads, first + 16 * r + row + i % 2 * 8,
                                            STEP * f + lane % 4 * (STEP / 8) + i / 2 * VECTOR);
#pragma unroll
        for (int f = 0; f < FEATURES / 8; ++f)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[r][f][i] = 0;
        largest[r][0] = largest[r][1] = -LARGEST;
        total[r][0] = total[r][1] = 0;
    }

    int stage = 0;
    for (int first_key = rows.first_key; first_key < rows.stop_key; first_key += KEYS, stage ^= 1) {  // [tiles]
        const Tile& tile = tiles[stage];
        finish_copies();  // [wait for the copies]
        __syncthreads();  // [barrier] this tile is complete, and the other one is no longer read
        if (first_key + KEYS < rows.stop_key)
            begin_to_load(tiles[stage ^ 1], rows, source, first_key + KEYS);  // [the other tile]

        float scores[ROW_TILES][KEYS / 8][4];
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
            for (int k = 0; k < KEYS / 8; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) scores[r][k][i] = 0;
#pragma unroll
        for (int f = 0; f < FEATURES / STEP; ++f)
#pragma unroll
            for (int k = 0; k < KEYS / 16; ++k) {
                unsigned b[4];
                load_keys(b, tile, 16 * k, STEP * f);
#pragma unroll
                for (int r = 0; r < ROW_TILES; ++r) {
                    multiply_add(scores[r][2 * k], q[r][f], b[0], b[1]);
                    multiply_add(scores[r][2 * k + 1], q[r][f], b[2], b[3]);
                }
            }

        if (source.is_real || first_key + KEYS > rows.stop_key)
#pragma unroll
            for (int k = 0; k < KEYS / 8; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (!tile.visible[8 * k + pair + i % 2])
#pragma unroll
                        for (int r = 0; r < ROW_TILES; ++r) scores[r][k][i] = -infinity;  // [masked] its weight is 0

#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float new_largest = largest[r][half], sum = 0;
#pragma unroll
                for (int k = 0; k < KEYS / 8; ++k)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i)
                        new_largest = scores[r][k][i] > new_largest ? scores[r][k][i] : new_largest;
                new_largest = row_max(new_largest);
                float rescaling = exp_of(largest[r][half] - new_largest);
#pragma unroll
                for (int k = 0; k < KEYS / 8; ++k)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[r][k][i] = exp_of(scores[r][k][i] - new_largest);  // exactly 1 for the largest
                        sum += scores[r][k][i];
                    }
                total[r][half] = total[r][half] * rescaling + row_sum(sum);  // [rescale the total]
                largest[r][half] = new_largest;  // [keep the largest]
#pragma unroll
                for (int f = 0; f < FEATURES / 8; ++f)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) sums[r][f][i] *= rescaling;  // [rescale the sums]
            }

#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) add_values(sums, scores, tile, 16 * k);
    }

#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int query = first + 16 * r + row + 8 * half;
            if (query >= rows.stop) continue;
            long long at = place(rows.length, source.num_heads, blockIdx.z, blockIdx.y, query);
            if (rows.sums && pair == 0) {
                rows.largest[at] = largest[r][half];
                rows.totals[at] = total[r][half];
            }
#pragma unroll
            for (int f = 0; f < FEATURES / 8; ++f)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    int feature = 8 * f + pair + i;
                    float sum = sums[r][f][2 * half + i];
                    if (feature >= HEAD_DIM) continue;
                    if (rows.sums)
                        rows.sums[at * HEAD_DIM + feature] = sum;
                    else
                        rows.context[at * HEAD_DIM + feature] = rounded(sum / total[r][half]);  // [normalization]
                }
        }
}
