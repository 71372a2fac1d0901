// The attention core of PEGASUS-X: softmax(q k^T / sqrt(F)) v over the global tokens and one block of the tokens.
//
// This file says which queries and keys a thread block takes. How a thread block attends from a tile of queries to a range
// of keys is in attend_fma.cuh, for float32 and float64, and in attend_mma.cuh, on tensor cores, for float16, bfloat16 and
// TF32. Padding and staggering are index arithmetic: nothing is moved, padded or masked in memory.
//
// Arrays have the layout that projections produce: (B, T, H, F) for the tokens and (B, G, H, F) for the global tokens.
//
// Macros: ELEMENT, the type of the arrays' numbers, and REAL, that of sums; LARGEST, the largest number of REAL;
// HEAD_DIM, F; QUERIES and KEYS, the size of a tile; THREADS, of a thread block; HALF_PRECISION, where ELEMENT is
// float16 or bfloat16; TF32, where products round float32 numbers to it.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

// All keys and values, and whether a token is real: 1 or 0 for each (B, T); null if all tokens are real.
struct KeysAndValues {
    const ELEMENT *keys, *values, *global_keys, *global_values;
    const unsigned char* is_real;
    int num_tokens, num_globals, num_heads;
};

// Queries first, … stop - 1 of `length` in each batch row, and where their results go.
//
// The keys of a row are numbered from 0: first the global tokens, which every query sees, then the tokens from
// `first_token` on. A thread block takes the keys first_key, … stop_key - 1. If these are not all of the row, it writes
// the weighted sum of the values, the largest score and the sum of the weights; else the attended values.
struct Rows {
    const ELEMENT* queries;
    ELEMENT* context;
    REAL *sums, *largest, *totals;  // null if the row is complete
    int length, first, stop, first_token, first_key, stop_key;
};

// The number of a token and head in an array with `length` tokens per batch row.
__device__ long long place(int length, int num_heads, int batch, int head, int token) {
    return ((long long)batch * length + token) * num_heads + head;
}

// The features of a key or value by the key's number in its row; null beyond the last key.
__device__ const ELEMENT* features_of(const ELEMENT* tokens, const ELEMENT* globals, const KeysAndValues& source,
                                      const Rows& rows, int key) {
    const int batch = blockIdx.z, head = blockIdx.y;  // [head]
    if (key >= rows.stop_key) return nullptr;
    if (key < source.num_globals)
        return globals + place(source.num_globals, source.num_heads, batch, head, key) * HEAD_DIM;
    int token = rows.first_token + key - source.num_globals;
    return tokens + place(source.num_tokens, source.num_heads, batch, head, token) * HEAD_DIM;
}

__device__ bool is_visible(const KeysAndValues& source, const Rows& rows, int key) {
    if (key >= rows.stop_key) return false;  // [keys beyond the last]
    if (key < source.num_globals || !source.is_real) return true;
    int token = rows.first_token + key - source.num_globals;
    return source.is_real[(long long)blockIdx.z * source.num_tokens + token];  // [padding mask]
}

#include "vectors.cuh"

#ifdef TENSOR_CORES
#include "attend_mma.cuh"
#else
#include "attend_fma.cuh"
#endif

// Each token attends to the global tokens and to the tokens of its own block. The blocks are [0, first_stop), then
// block_size tokens each. Grid: (blocks x tiles per block, heads, batch rows).
extern "C" __global__ void local_attention(const ELEMENT* queries, const ELEMENT* keys, const ELEMENT* values,
                                           const ELEMENT* global_keys, const ELEMENT* global_values,
                                           const unsigned char* is_real, ELEMENT* context, int num_tokens,
                                           int num_globals, int first_stop, int block_size, int tiles_per_block) {
    KeysAndValues source = {keys, values, global_keys, global_values, is_real, num_tokens, num_globals, (int)gridDim.y};
    int block = blockIdx.x / tiles_per_block, tile = blockIdx.x % tiles_per_block;
    int start = block ? first_stop + (block - 1) * block_size : 0;  // [block start]
    int stop = first_stop + block * block_size < num_tokens ? first_stop + block * block_size : num_tokens;
    int first = start + tile * QUERIES;
    int num_keys = num_globals + stop - start;  // [number of keys]
    Rows rows = {queries, context, nullptr, nullptr, nullptr, num_tokens, first, stop, start, 0, num_keys};
    if (first < stop) attend(rows, source);
}

// Each global token attends to all global tokens and to all tokens, which are divided into parts of part_size keys:
// there are too few queries to occupy a GPU otherwise. Grid: (tiles x parts, heads, batch rows).
extern "C" __global__ void global_attention(const ELEMENT* queries, const ELEMENT* keys, const ELEMENT* values,
                                            const ELEMENT* global_keys, const ELEMENT* global_values,
                                            const unsigned char* is_real, REAL* sums, REAL* largest, REAL* totals,
                                            int num_tokens, int num_globals, int part_size, int num_parts) {
    KeysAndValues source = {keys, values, global_keys, global_values, is_real, num_tokens, num_globals, (int)gridDim.y};
    int part = blockIdx.x % num_parts, tile = blockIdx.x / num_parts, num_keys = num_globals + num_tokens;
    int stop_key = (part + 1) * part_size < num_keys ? (part + 1) * part_size : num_keys;
    long long rows_per_part = (long long)gridDim.z * num_globals * gridDim.y;  // [rows of a part]
    Rows rows = {queries,
                 nullptr,
                 sums + part * rows_per_part * HEAD_DIM,
                 largest + part * rows_per_part,
                 totals + part * rows_per_part,
                 num_globals,
                 tile * QUERIES,
                 num_globals,
                 0,
                 part * part_size,
                 stop_key};
    attend(rows, source);
}

#include "merge_parts.cuh"
