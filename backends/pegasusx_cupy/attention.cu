// The attention core of PEGASUS-X: softmax(q k^T / sqrt(F)) v over the global tokens and a slice of the tokens.
//
// A block of 128 threads takes a tile of queries of one head and goes over the keys in tiles. Scores live only as a
// tile: the softmax is computed online (arXiv 1805.02867), each row with its greatest score so far, the sum of its
// weights and its weighted values, rescaled whenever a greater score comes. Padding and staggering are index
// arithmetic: nothing is moved, padded or masked in memory.
//
// Arrays lie as projections leave them, (B, T, H, F) for the tokens and (B, G, H, F) for the global tokens.
//
// Compiled with these macros: REAL, float or double; LARGEST, the largest number of that type; HEAD_DIM, F; and the tile,
// QUERIES (a multiple of 16) by KEYS (a multiple of 8), small enough for shared memory.
//
// Threads are 16 x 8: thread (row, column) has the queries row, row + 16, … of the tile, and of its keys and features
// column, column + 8, …. The 8 threads of a row are neighbours in a warp.

#define THREADS 128
#define COLUMNS 8
#define ROWS (THREADS / COLUMNS)
#define QUERIES_EACH (QUERIES / ROWS)
#define KEYS_EACH (KEYS / COLUMNS)
#define FEATURES_EACH ((HEAD_DIM + COLUMNS - 1) / COLUMNS)

// Everything that can be attended to, and which tokens are no padding: 1 or 0 for each (B, T); null means all.
struct Source {
    const REAL *keys, *values, *global_keys, *global_values;
    const unsigned char* is_real;
    int num_tokens, num_globals, num_heads;
};

// Where the features of a token begin, in an array with so many tokens a text.
__device__ long long row_at(int length, int num_heads, int text, int head, int token) {
    return (((long long)text * length + token) * num_heads + head) * HEAD_DIM;
}

__device__ REAL row_max(REAL value) {
    for (int lane = COLUMNS / 2; lane > 0; lane /= 2) {
        REAL other = __shfl_xor_sync(0xffffffffu, value, lane);
        value = other > value ? other : value;
    }
    return value;
}

__device__ REAL row_sum(REAL value) {
    for (int lane = COLUMNS / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

// Attend from the queries [first, stop), of which there are `length` a text and this block takes the first QUERIES, to
// all global tokens and to the tokens [keys_start, keys_stop).
__device__ void attend(const REAL* queries, REAL* context, int length, int first, int stop, const Source& source,
                       int keys_start, int keys_stop) {
    __shared__ REAL query_tile[QUERIES][HEAD_DIM + 1];
    __shared__ REAL key_tile[KEYS][HEAD_DIM + 1];
    __shared__ REAL value_tile[KEYS][HEAD_DIM + 1];
    __shared__ REAL weight_tile[QUERIES][KEYS + 1];
    __shared__ bool is_seen[KEYS];

    const int text = blockIdx.z, head = blockIdx.y;
    const int thread = threadIdx.x, row = thread / COLUMNS, column = thread % COLUMNS;
    const int num_keys = source.num_globals + (keys_stop - keys_start);
    const REAL scale = (REAL)1 / sqrt((REAL)HEAD_DIM);

    for (int i = thread; i < QUERIES * HEAD_DIM; i += THREADS) {
        int query = first + i / HEAD_DIM, feature = i % HEAD_DIM;
        REAL q = query < stop ? queries[row_at(length, source.num_heads, text, head, query) + feature] : (REAL)0;
        query_tile[i / HEAD_DIM][feature] = q * scale;
    }

    REAL greatest[QUERIES_EACH], total[QUERIES_EACH], sums[QUERIES_EACH][FEATURES_EACH];
    for (int i = 0; i < QUERIES_EACH; ++i) {
        greatest[i] = -LARGEST;
        total[i] = 0;
        for (int f = 0; f < FEATURES_EACH; ++f) sums[i][f] = 0;
    }

    // Keys are numbered from 0: first the global tokens, which everyone sees, then the slice's tokens.
    for (int tile = 0; tile < num_keys; tile += KEYS) {
        __syncthreads();  // everyone is done with the tiles before
        for (int i = thread; i < KEYS * HEAD_DIM; i += THREADS) {
            int key = tile + i / HEAD_DIM, feature = i % HEAD_DIM, token = keys_start + key - source.num_globals;
            REAL k = 0, v = 0;
            if (key < source.num_globals) {
                long long at = row_at(source.num_globals, source.num_heads, text, head, key) + feature;
                k = source.global_keys[at];
                v = source.global_values[at];
            } else if (key < num_keys) {
                long long at = row_at(source.num_tokens, source.num_heads, text, head, token) + feature;
                k = source.keys[at];
                v = source.values[at];
            }
            key_tile[i / HEAD_DIM][feature] = k;
            value_tile[i / HEAD_DIM][feature] = v;
        }
        if (thread < KEYS) {
            int key = tile + thread, token = keys_start + key - source.num_globals;
            bool is_token = key >= source.num_globals && key < num_keys;
            bool is_padding = is_token && source.is_real && !source.is_real[(long long)text * source.num_tokens + token];
            is_seen[thread] = key < num_keys && !is_padding;
        }
        __syncthreads();  // the tiles are there

        REAL scores[QUERIES_EACH][KEYS_EACH];
        for (int i = 0; i < QUERIES_EACH; ++i)
            for (int j = 0; j < KEYS_EACH; ++j) scores[i][j] = 0;
        for (int f = 0; f < HEAD_DIM; ++f) {
            REAL k[KEYS_EACH];
            for (int j = 0; j < KEYS_EACH; ++j) k[j] = key_tile[column + j * COLUMNS][f];
            for (int i = 0; i < QUERIES_EACH; ++i) {
                REAL q = query_tile[row + i * ROWS][f];
                for (int j = 0; j < KEYS_EACH; ++j) scores[i][j] += q * k[j];
            }
        }

        for (int i = 0; i < QUERIES_EACH; ++i) {
            REAL best = -LARGEST;
            for (int j = 0; j < KEYS_EACH; ++j)
                if (is_seen[column + j * COLUMNS] && scores[i][j] > best) best = scores[i][j];
            best = row_max(best);
            best = best > greatest[i] ? best : greatest[i];
            REAL shrink = exp(greatest[i] - best), sum = 0;
            for (int j = 0; j < KEYS_EACH; ++j) {
                REAL weight = is_seen[column + j * COLUMNS] ? exp(scores[i][j] - best) : (REAL)0;
                weight_tile[row + i * ROWS][column + j * COLUMNS] = weight;
                sum += weight;
            }
            total[i] = total[i] * shrink + row_sum(sum);
            greatest[i] = best;
            for (int f = 0; f < FEATURES_EACH; ++f) sums[i][f] *= shrink;
        }
        __syncwarp();  // the weights are there: a row's come from its own warp

        for (int j = 0; j < KEYS; ++j) {
            REAL v[FEATURES_EACH];
            for (int f = 0; f < FEATURES_EACH; ++f) {
                int feature = column + f * COLUMNS;
                v[f] = feature < HEAD_DIM ? value_tile[j][feature] : (REAL)0;
            }
            for (int i = 0; i < QUERIES_EACH; ++i) {
                REAL weight = weight_tile[row + i * ROWS][j];
                for (int f = 0; f < FEATURES_EACH; ++f) sums[i][f] += weight * v[f];
            }
        }
    }

    for (int i = 0; i < QUERIES_EACH; ++i) {
        int query = first + row + i * ROWS;
        if (query >= stop) continue;
        REAL* found = context + row_at(length, source.num_heads, text, head, query);
        for (int f = 0; f < FEATURES_EACH; ++f) {
            int feature = column + f * COLUMNS;
            if (feature < HEAD_DIM) found[feature] = sums[i][f] / total[i];
        }
    }
}

// Each token attends to the global tokens and to its own slice. The blocks are [0, first_stop), then every block_size
// tokens. Grid: blocks x tiles of a slice, heads, texts.
extern "C" __global__ void local_attention(const REAL* queries, const REAL* keys, const REAL* values,
                                           const REAL* global_keys, const REAL* global_values,
                                           const unsigned char* is_real, REAL* context, int num_tokens, int num_globals,
                                           int first_stop, int block_size, int tiles_a_slice) {
    Source source = {keys, values, global_keys, global_values, is_real, num_tokens, num_globals, (int)gridDim.y};
    int slice = blockIdx.x / tiles_a_slice, tile = blockIdx.x % tiles_a_slice;
    int start = slice ? first_stop + (slice - 1) * block_size : 0;
    int stop = first_stop + slice * block_size < num_tokens ? first_stop + slice * block_size : num_tokens;
    int first = start + tile * QUERIES;
    if (first < stop) attend(queries, context, num_tokens, first, stop, source, start, stop);
}

// Each global token attends to all global tokens and to all tokens. Grid: tiles, heads, texts.
extern "C" __global__ void global_attention(const REAL* queries, const REAL* keys, const REAL* values,
                                            const REAL* global_keys, const REAL* global_values,
                                            const unsigned char* is_real, REAL* context, int num_tokens,
                                            int num_globals) {
    Source source = {keys, values, global_keys, global_values, is_real, num_tokens, num_globals, (int)gridDim.y};
    attend(queries, context, num_globals, blockIdx.x * QUERIES, num_globals, source, 0, num_tokens);
}
