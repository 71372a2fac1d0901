// LayerNorm and softmax: a thread block computes a row, so that no intermediate result goes through memory. Also copies of
// a row, relu and quantized numbers, for which CuPy's own kernels go through memory several times, or number by number.
//
// Macros: REAL, float or double, the type of the input and of sums; ELEMENT, that of the result; THREADS, of a thread
// block; HALF_PRECISION, where ELEMENT is float16 or bfloat16.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#include "reduction.cuh"
#include "vectors.cuh"

#ifdef HALF_PRECISION
__device__ half_bits positive(half_bits x) { return x > 0x8000 && x <= 0x8000 + INFINITY_BITS ? 0 : x; }  // [positive]
#else
__device__ ELEMENT positive(ELEMENT x) { return x < 0 ? (ELEMENT)0 : x; }
#endif

// Normalize rows of `width` numbers. Grid: (rows).
extern "C" __global__ void layer_norm(const REAL* x, const REAL* weight, const REAL* bias, ELEMENT* y, int width,
                                      REAL eps) {
    x += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    REAL sum = 0, squares = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += x[i];
    const REAL mean = over_block(SUM, sum) / width;
    for (int i = threadIdx.x; i < width; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    REAL variance = over_block(SUM, squares) / width;
    variance += variance - variance;  // [overflow] infinity becomes NaN, which x / infinity = 0 would hide
    const REAL deviation = sqrt(variance + eps);  // [deviation]
    for (int i = threadIdx.x; i < width; i += THREADS)
        y[i] = rounded((x[i] - mean) / deviation * weight[i] + bias[i]);
}

// Compute the softmax of scores (B, H, L, X), rows of X numbers; they are overwritten. Masked keys get the weight 0. A
// row whose keys are all masked gets equal weights. `visible` is null, or 1 where a query sees a key: rows of X bytes,
// batch_step of them from one b to the next, query_step from one l to the next. Grid: (L, H, B).
extern "C" __global__ void softmax(REAL* scores, const unsigned char* visible, ELEMENT* weights, int width,
                                   int batch_step, int query_step) {
    const long long row = ((long long)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    scores += row * width;
    weights += row * width;
    if (visible) visible += ((long long)blockIdx.z * batch_step + (long long)blockIdx.x * query_step) * width;
    const REAL minus_infinity = -1 / (REAL)0;

    REAL largest = minus_infinity, num_visible = visible ? 0 : width;
    for (int i = threadIdx.x; i < width; i += THREADS)
        if (!visible || visible[i]) {  // [visible]
            largest = combined(MAX, largest, scores[i]);
            if (visible) num_visible += 1;
        }
    largest = over_block(MAX, largest);
    num_visible = over_block(SUM, num_visible);

    REAL sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        REAL weight = visible && !visible[i] ? (REAL)0 : exp(scores[i] - largest);  // [masked]
        if (num_visible == 0) weight = 1;  // [nothing is visible]
        scores[i] = weight;
        sum += weight;
    }
    sum = over_block(SUM, sum);
    for (int i = threadIdx.x; i < width; i += THREADS) weights[i] = rounded(scores[i] / sum);
}

// Write a row of `width` numbers as each row of y. Grid: (rows).
extern "C" __global__ void repeat_row(const REAL* row, ELEMENT* y, int width) {
    y += (long long)blockIdx.x * width;
    if (width % VECTOR == 0)
        for (int i = threadIdx.x; i < width / VECTOR; i += THREADS) {
            Vector vector;
            for (int c = 0; c < VECTOR; ++c) vector.at[c] = rounded(row[i * VECTOR + c]);
            ((Vector*)y)[i] = vector;
        }
    else
        for (int i = threadIdx.x; i < width; i += THREADS) y[i] = rounded(row[i]);
}

// Replace negative numbers by 0; NaN stays. Grid: (vectors / THREADS).
extern "C" __global__ void relu(const ELEMENT* x, ELEMENT* y, long long count) {
    const long long first = ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (first >= count) return;
    Vector vector = load(x + first, 0, first + VECTOR <= count ? VECTOR : count - first);
    for (int c = 0; c < VECTOR; ++c) vector.at[c] = positive(vector.at[c]);
    store(vector, y, first, count);
}

// The numbers that 4 bits stand for: code times scale. Two are in a byte, the first one in the upper bits. A thread computes
// a vector, whose numbers share a scale. Grid: (vectors / THREADS).
extern "C" __global__ void dequantize_4bit(const unsigned char* packed, const float* absmax, const float* code,
                                           ELEMENT* numbers, int block_size, long long count) {
    const long long first = ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (first >= count) return;
    const float scale = absmax[first / block_size];
    Vector vector;
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
        if (first + c >= count) break;
        const int byte = packed[(first + c) / 2], bits = c % 2 ? byte & 15 : byte >> 4;  // [bits]
        vector.at[c] = rounded(code[bits] * scale);
    }
    store(vector, numbers, first, count);
}

// The numbers that 8 bits stand for: multiples of 1/127 of a row's largest magnitude. Grid: (vectors / THREADS).
extern "C" __global__ void dequantize_int8(const signed char* codes, const float* absmax, ELEMENT* numbers, int width,
                                           long long count) {
    const long long first = ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (first >= count) return;
    long long row = first / width;
    int column = first % width;
    Vector vector;
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) {
        if (first + c >= count) break;
        vector.at[c] = rounded(codes[first + c] * absmax[row] * (1.0f / 127));
        if (++column < width) continue;
        ++row;  // [the next row]
        column = 0;
    }
    store(vector, numbers, first, count);
}
