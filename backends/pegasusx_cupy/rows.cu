// LayerNorm and softmax: a thread block computes a row, so that no intermediate result goes through memory. Also copies of
// a row, relu and quantized numbers, for which CuPy's own kernels go through memory several times, or number by number.
//
// Macros: REAL, float or double, the type of the input and of sums; ELEMENT, that of the result; THREADS, of a thread
// block; HALF_PRECISION, where ELEMENT is float16 or bfloat16.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#define WARPS (THREADS / 32)

#include "vectors.cuh"

#ifdef HALF_PRECISION
__device__ half_bits positive(half_bits x) { return x > 0x8000 && x <= 0x8000 + INFINITY_BITS ? 0 : x; }  // [positive]
#else
__device__ ELEMENT positive(ELEMENT x) { return x < 0 ? (ELEMENT)0 : x; }
#endif

enum Operation { SUM, MAX };

__device__ REAL combined(Operation operation, REAL a, REAL b) {
    if (operation == SUM) return a + b;
    return b > a ? b : a;
}

// Combine the values of all threads; every thread gets the result.
__device__ REAL over_row(Operation operation, REAL value) {
    __shared__ REAL of_warps[WARPS];
    for (int lane = 16; lane > 0; lane /= 2)
        value = combined(operation, value, __shfl_xor_sync(0xffffffffu, value, lane));
    __syncthreads();  // [barrier before combining] the previous results are no longer read
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();  // [barrier after combining] the results of the warps are complete
    value = of_warps[0];
    for (int warp = 1; warp < WARPS; ++warp) value = combined(operation, value, of_warps[warp]);
    return value;
}

// Normalize rows of `width` numbers. Grid: (rows).
extern "C" __global__ void layer_norm(const REAL* x, const REAL* weight, const REAL* bias, ELEMENT* y, int width,
                                      REAL eps) {
    x += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    REAL sum = 0, squares = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += x[i];
    const REAL mean = over_row(SUM, sum) / width;
    for (int i = threadIdx.x; i < width; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    REAL variance = over_row(SUM, squares) / width;
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
    largest = over_row(MAX, largest);
    num_visible = over_row(SUM, num_visible);

    REAL sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        REAL weight = visible && !visible[i] ? (REAL)0 : exp(scores[i] - largest);  // [masked]
        if (num_visible == 0) weight = 1;  // [nothing is visible]
        scores[i] = weight;
        sum += weight;
    }
    sum = over_row(SUM, sum);
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
    long long first = ((long long)blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (first + VECTOR <= count) {
        Vector vector = *(const Vector*)(x + first);
        for (int c = 0; c < VECTOR; ++c) vector.at[c] = positive(vector.at[c]);
        *(Vector*)(y + first) = vector;
    } else
        for (long long i = first; i < count; ++i) y[i] = positive(x[i]);
}

// The numbers that 4 bits stand for: code times scale. Two are in a byte, the first one in the upper bits. Grid: (count /
// THREADS).
extern "C" __global__ void dequantize_4bit(const unsigned char* packed, const float* absmax, const float* code,
                                           ELEMENT* numbers, int block_size, long long count) {
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const int bits = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;  // [bits]
    numbers[i] = rounded(code[bits] * absmax[i / block_size]);
}

// The numbers that 8 bits stand for: multiples of 1/127 of a row's largest magnitude. Grid: (count / THREADS).
extern "C" __global__ void dequantize_int8(const signed char* codes, const float* absmax, ELEMENT* numbers, int width,
                                           long long count) {
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) numbers[i] = rounded(codes[i] * absmax[i / width] * (1.0f / 127));  // [scale of a row]
}
