// Attention from a tile of queries to a range of keys, in float32 or float64 on the cores of a GPU.
//
// Scores exist only as a tile of QUERIES (a multiple of 16) by KEYS (a multiple of 8): the softmax is computed online
// (arXiv 1805.02867). Each row keeps its largest score so far, the sum of its weights and its weighted values, which
// are rescaled whenever a larger score occurs.
//
// Threads are 16 x 8: thread (row, column) computes the queries row, row + 16, … of the tile, of its keys column,
// column + 8, …, and of its features the vectors column, column + 8, …. The 8 threads of a row are adjacent lanes of a
// warp. Shared memory is read in vectors of 16 bytes, because a number at a time takes longer than the products.

#define COLUMNS 8
#define ROWS (THREADS / COLUMNS)
#define QUERIES_PER_THREAD (QUERIES / ROWS)
#define KEYS_PER_THREAD (KEYS / COLUMNS)
#define VECTORS ((HEAD_DIM + VECTOR - 1) / VECTOR)                  // of a row's features; zeros fill the last one
#define VECTORS_PER_THREAD ((VECTORS + COLUMNS - 1) / COLUMNS)
#define STRIDE (VECTORS + 1 - VECTORS % 2)                          // odd: rows begin in different banks

__device__ REAL exp_of(REAL difference) { return exp(difference); }

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

__device__ void attend(const Rows& rows, const KeysAndValues& source) {
    __shared__ Vector query_tile[QUERIES][STRIDE], key_tile[KEYS][STRIDE], value_tile[KEYS][STRIDE];
    __shared__ Vector weight_tile[QUERIES][KEYS / VECTOR + 1];
    __shared__ bool visible[KEYS];

    const int thread = threadIdx.x, row = thread / COLUMNS, column = thread % COLUMNS;
    const REAL scale = (REAL)1 / sqrt((REAL)HEAD_DIM);  // [value of the scale]

    for (int i = thread; i < QUERIES * VECTORS; i += THREADS) {
        int query = rows.first + i / VECTORS;
        long long at = place(rows.length, source.num_heads, blockIdx.z, blockIdx.y, query) * HEAD_DIM;
        Vector q = load(query < rows.stop ? rows.queries + at : nullptr, i % VECTORS, HEAD_DIM);
        for (int c = 0; c < VECTOR; ++c) q.at[c] *= scale;  // [scale]
        query_tile[i / VECTORS][i % VECTORS] = q;
    }

    REAL largest[QUERIES_PER_THREAD], total[QUERIES_PER_THREAD];
    Vector sums[QUERIES_PER_THREAD][VECTORS_PER_THREAD];
    for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
        largest[i] = -LARGEST;
        total[i] = 0;
        for (int f = 0; f < VECTORS_PER_THREAD; ++f) sums[i][f] = Vector{};
    }

    for (int tile = rows.first_key; tile < rows.stop_key; tile += KEYS) {  // [key tiles]
        __syncthreads();  // [barrier before loading] the previous tiles are no longer read
        for (int i = thread; i < KEYS * VECTORS; i += THREADS) {
            int key = tile + i / VECTORS;
            const ELEMENT* k = features_of(source.keys, source.global_keys, source, rows, key);
            const ELEMENT* v = features_of(source.values, source.global_values, source, rows, key);  // [values]
            key_tile[i / VECTORS][i % VECTORS] = load(k, i % VECTORS, HEAD_DIM);
            value_tile[i / VECTORS][i % VECTORS] = load(v, i % VECTORS, HEAD_DIM);
        }
        if (thread < KEYS) visible[thread] = is_visible(source, rows, tile + thread);
        __syncthreads();  // [barrier after loading] the tiles are complete

        REAL scores[QUERIES_PER_THREAD][KEYS_PER_THREAD];
        for (int i = 0; i < QUERIES_PER_THREAD; ++i)
            for (int j = 0; j < KEYS_PER_THREAD; ++j) scores[i][j] = 0;
#pragma unroll 4
        for (int f = 0; f < VECTORS; ++f) {
            Vector k[KEYS_PER_THREAD];
            for (int j = 0; j < KEYS_PER_THREAD; ++j) k[j] = key_tile[column + j * COLUMNS][f];
            for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
                Vector q = query_tile[row + i * ROWS][f];
                for (int j = 0; j < KEYS_PER_THREAD; ++j)
                    for (int c = 0; c < VECTOR; ++c) scores[i][j] += q.at[c] * k[j].at[c];
            }
        }

        for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
            REAL new_largest = -LARGEST;
            for (int j = 0; j < KEYS_PER_THREAD; ++j)
                if (visible[column + j * COLUMNS] && scores[i][j] > new_largest) new_largest = scores[i][j];
            new_largest = row_max(new_largest);
            new_largest = new_largest > largest[i] ? new_largest : largest[i];
            REAL rescaling = exp(largest[i] - new_largest), sum = 0;
            for (int j = 0; j < KEYS_PER_THREAD; ++j) {
                REAL weight = visible[column + j * COLUMNS] ? exp(scores[i][j] - new_largest) : (REAL)0;  // [masked]
                int at = column + j * COLUMNS;
                weight_tile[row + i * ROWS][at / VECTOR].at[at % VECTOR] = weight;
                sum += weight;
            }
            total[i] = total[i] * rescaling + row_sum(sum);  // [rescale the total]
            largest[i] = new_largest;  // [keep the largest]
            for (int f = 0; f < VECTORS_PER_THREAD; ++f)
                for (int c = 0; c < VECTOR; ++c) sums[i][f].at[c] *= rescaling;  // [rescale the sums]
        }
        __syncwarp();  // the weights of a row are complete: they come from its own warp

#pragma unroll 2
        for (int j = 0; j < KEYS / VECTOR; ++j) {
            Vector weight[QUERIES_PER_THREAD];
            for (int i = 0; i < QUERIES_PER_THREAD; ++i) weight[i] = weight_tile[row + i * ROWS][j];
            for (int c = 0; c < VECTOR; ++c)
                for (int f = 0; f < VECTORS_PER_THREAD; ++f) {
                    if (column + f * COLUMNS >= VECTORS) continue;
                    Vector v = value_tile[j * VECTOR + c][column + f * COLUMNS];
                    for (int i = 0; i < QUERIES_PER_THREAD; ++i)
                        for (int d = 0; d < VECTOR; ++d) sums[i][f].at[d] += weight[i].at[c] * v.at[d];
                }
        }
    }

    for (int i = 0; i < QUERIES_PER_THREAD; ++i) {
        int query = rows.first + row + i * ROWS;
        if (query >= rows.stop) continue;
        long long at = place(rows.length, source.num_heads, blockIdx.z, blockIdx.y, query);
        if (rows.sums && column == 0) {
            rows.largest[at] = largest[i];
            rows.totals[at] = total[i];
        }
        for (int f = 0; f < VECTORS_PER_THREAD; ++f)
            for (int c = 0; c < VECTOR; ++c) {
                int feature = (column + f * COLUMNS) * VECTOR + c;
                if (feature >= HEAD_DIM) continue;
                if (rows.sums)
                    rows.sums[at * HEAD_DIM + feature] = sums[i][f].at[c];
                else
                    rows.context[at * HEAD_DIM + feature] = sums[i][f].at[c] / total[i];  // [normalization]
            }
    }
}
