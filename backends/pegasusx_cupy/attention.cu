// The attention core of PEGASUS-X: softmax(q k^T / sqrt(F)) v over the global tokens and one block of the tokens.
//
// A thread block of 128 threads takes a tile of queries of one head and loops over the keys in tiles. Scores exist only
// as a tile: the softmax is computed online (arXiv 1805.02867). Each row keeps its largest score so far, the sum of its
// weights and its weighted values, which are rescaled whenever a larger score occurs. Padding and staggering are index
// arithmetic: nothing is moved, padded or masked in memory.
//
// Arrays have the layout that projections produce: (B, T, H, F) for the tokens and (B, G, H, F) for the global tokens.
//
// Macros: REAL, float or double; LARGEST, the largest number of that type; HEAD_DIM, F; and the tile size, QUERIES (a
// multiple of 16) by KEYS (a multiple of 8), small enough for shared memory.
//
// Threads are 16 x 8: thread (row, column) computes the queries row, row + 16, … of the tile, and of its keys and
// features column, column + 8, …. The 8 threads of a row are adjacent lanes of a warp.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#define THREADS 128
#define COLUMNS 8
#define ROWS (THREADS / COLUMNS)
#define QUERIES_PER_THREAD (QUERIES / ROWS)
#define KEYS_PER_THREAD (KEYS / COLUMNS)
#define FEATURES_PER_THREAD ((HEAD_DIM + COLUMNS - 1) / COLUMNS)

// All keys and values, and whether a token is real: 1 or 0 for each (B, T); null if all tokens are real.
struct KeysAndValues {
    const REAL *keys, *values, *global_keys, *global_values;
    const unsigned char* is_real;
    int num_tokens, num_globals, num_heads;
};

// The offset of a token's features in an array with `length` tokens per batch row.
__device__ long long features_at(int length, int num_heads, int batch, int head, int token) {
    return (((long long)batch * length + token) * num_heads + head) * HEAD_DIM;
}

__device__ REAL row_max(REAL value) {
    for (int lane = COLUMNS / 2; lane > 0; lane /= 2) {
        REAL other = __shfl_xor_sync(0xffffffffu, value, lane);
        value = other > value ? other : value;
    }
    return value;
}

__device__ REAL row_sum(REAL value) {
    for (int lane = COLUMNS / 2; lane > 0; lane /= 2)  // [row sum]
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

// Attend from the tile of queries that starts at `first` to all global tokens and the tokens [keys_start, keys_stop).
// There are `length` queries per batch row; those from `stop` on are not computed.
__device__ void attend(const REAL* queries, REAL* context, int length, int first, int stop,
                       const KeysAndValues& source, int keys_start, int keys_stop) {
    __shared__ REAL query_tile[QUERIES][HEAD_DIM + 1];
    __shared__ REAL key_tile[KEYS][HEAD_DIM + 1];
    __shared__ REAL value_tile[KEYS][HEAD_DIM + 1];
    __shared__ REAL weight_tile[QUERIES][KEYS + 1];
    __shared__ bool is_visible[KEYS];

    const int batch = blockIdx.z, head = blockIdx.y;  // [head]
    const int thread = threadIdx.x, row = thread / COLUMNS, column = thread % COLUMNS;
    const int num_keys = source.num_globals + (keys_stop - keys_start);  // [number of keys]
    const REAL scale = (REAL)1 / sqrt((REAL)HEAD_DIM);  // [value of the scale]

    for (int i = thread; i < QUERIES * HEAD_DIM; i += THREADS) {
        int query = first + i / HEAD_DIM, feature = i % HEAD_DIM;
        REAL q = query < stop ? queries[features_at(length, source.num_heads, batch, head, query) + feature] : (REAL)0;
        query_tile[i / HEAD_DIM][feature] = q * scale;  // [scale]
    }

    REAL largest[QUERIES_PER_THREAD], total[QUERIES_PER_THREAD], sums[QUERIES_PER_THREAD][FEATURES_PER_THREAD];
    for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
        largest[i] = -LARGEST;
        total[i] = 0;
        for (int f = 0; f < FEATURES_PER_THREAD; ++f) sums[i][f] = 0;
    }

    // Keys are numbered from 0: first the global tokens, which every query sees, then the tokens of the block.
    for (int tile = 0; tile < num_keys; tile += KEYS) {  // [key tiles]
        __syncthreads();  // [barrier before loading] the previous tiles are no longer read
        for (int i = thread; i < KEYS * HEAD_DIM; i += THREADS) {
            int key = tile + i / HEAD_DIM, feature = i % HEAD_DIM, token = keys_start + key - source.num_globals;
            REAL k = 0, v = 0;
            if (key < source.num_globals) {
                long long at = features_at(source.num_globals, source.num_heads, batch, head, key) + feature;
                k = source.global_keys[at];
                v = source.global_values[at];  // [global values]
            } else if (key < num_keys) {
                long long at = features_at(source.num_tokens, source.num_heads, batch, head, token) + feature;
                k = source.keys[at];
                v = source.values[at];
            }
            key_tile[i / HEAD_DIM][feature] = k;
            value_tile[i / HEAD_DIM][feature] = v;
        }
        if (thread < KEYS) {
            int key = tile + thread, token = keys_start + key - source.num_globals;
            bool is_token = key >= source.num_globals && key < num_keys;
            bool is_padding = is_token && source.is_real &&
                              !source.is_real[(long long)batch * source.num_tokens + token];  // [padding mask]
            is_visible[thread] = key < num_keys && !is_padding;  // [visible keys]
        }
        __syncthreads();  // [barrier after loading] the tiles are complete

        REAL scores[QUERIES_PER_THREAD][KEYS_PER_THREAD];
        for (int i = 0; i < QUERIES_PER_THREAD; ++i)
            for (int j = 0; j < KEYS_PER_THREAD; ++j) scores[i][j] = 0;
        for (int f = 0; f < HEAD_DIM; ++f) {
            REAL k[KEYS_PER_THREAD];
            for (int j = 0; j < KEYS_PER_THREAD; ++j) k[j] = key_tile[column + j * COLUMNS][f];
            for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
                REAL q = query_tile[row + i * ROWS][f];
                for (int j = 0; j < KEYS_PER_THREAD; ++j) scores[i][j] += q * k[j];
            }
        }

        for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
            REAL new_largest = -LARGEST;
            for (int j = 0; j < KEYS_PER_THREAD; ++j)
                if (is_visible[column + j * COLUMNS] && scores[i][j] > new_largest) new_largest = scores[i][j];
            new_largest = row_max(new_largest);
            new_largest = new_largest > largest[i] ? new_largest : largest[i];
            REAL rescaling = exp(largest[i] - new_largest), sum = 0;
            for (int j = 0; j < KEYS_PER_THREAD; ++j) {
                REAL weight = is_visible[column + j * COLUMNS] ? exp(scores[i][j] - new_largest) : (REAL)0;
                weight_tile[row + i * ROWS][column + j * COLUMNS] = weight;
                sum += weight;
            }
            total[i] = total[i] * rescaling + row_sum(sum);  // [rescale the total]
            largest[i] = new_largest;  // [keep the largest]
            for (int f = 0; f < FEATURES_PER_THREAD; ++f) sums[i][f] *= rescaling;  // [rescale the sums]
        }
        __syncwarp();  // the weights of a row are complete: they come from its own warp

        for (int j = 0; j < KEYS; ++j) {
            REAL v[FEATURES_PER_THREAD];
            for (int f = 0; f < FEATURES_PER_THREAD; ++f) {
                int feature = column + f * COLUMNS;
                v[f] = feature < HEAD_DIM ? value_tile[j][feature] : (REAL)0;
            }
            for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
                REAL weight = weight_tile[row + i * ROWS][j];
                for (int f = 0; f < FEATURES_PER_THREAD; ++f) sums[i][f] += weight * v[f];
            }
        }
    }

    for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
        int query = first + row + i * ROWS;
        if (query >= stop) continue;
        REAL* output = context + features_at(length, source.num_heads, batch, head, query);
        for (int f = 0; f < FEATURES_PER_THREAD; ++f) {
            int feature = column + f * COLUMNS;
            if (feature < HEAD_DIM) output[feature] = sums[i][f] / total[i];  // [normalization]
        }
    }
}

// Each token attends to the global tokens and to the tokens of its own block. The blocks are [0, first_stop), then
// block_size tokens each. Grid: (blocks x tiles per block, heads, batch rows).
extern "C" __global__ void local_attention(const REAL* queries, const REAL* keys, const REAL* values,
                                           const REAL* global_keys, const REAL* global_values,
                                           const unsigned char* is_real, REAL* context, int num_tokens, int num_globals,
                                           int first_stop, int block_size, int tiles_per_block) {
    KeysAndValues source = {keys, values, global_keys, global_values, is_real, num_tokens, num_globals, (int)gridDim.y};
    int block = blockIdx.x / tiles_per_block, tile = blockIdx.x % tiles_per_block;
    int start = block ? first_stop + (block - 1) * block_size : 0;  // [block start]
    int stop = first_stop + block * block_size < num_tokens ? first_stop + block * block_size : num_tokens;
    int first = start + tile * QUERIES;
    if (first < stop) attend(queries, context, num_tokens, first, stop, source, start, stop);
}

// Each global token attends to all global tokens and to all tokens. Grid: (tiles, heads, batch rows).
extern "C" __global__ void global_attention(const REAL* queries, const REAL* keys, const REAL* values,
                                            const REAL* global_keys, const REAL* global_values,
                                            const unsigned char* is_real, REAL* context, int num_tokens,
                                            int num_globals) {
    KeysAndValues source = {keys, values, global_keys, global_values, is_real, num_tokens, num_globals, (int)gridDim.y};
    attend(queries, context, num_globals, blockIdx.x * QUERIES, num_globals, source, 0, num_tokens);
}
