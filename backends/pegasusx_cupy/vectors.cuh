// Numbers as arrays hold them, ELEMENT, and as kernels compute with them, REAL; 16 bytes are read and written at once.
//
// Macros: ELEMENT and REAL; HALF_PRECISION, where ELEMENT is float16 or bfloat16 and REAL float; TF32, where both are float
// and products of matrices round their operands.

#if defined(HALF_PRECISION) || defined(TF32)
#define TENSOR_CORES
#include "ptx.cuh"
#endif

#ifdef HALF_PRECISION
__device__ REAL number(ELEMENT x) { return number_of_half(x); }
__device__ ELEMENT rounded(REAL x) { return rounded_half(x); }
#else
__device__ REAL number(ELEMENT x) { return x; }
__device__ ELEMENT rounded(REAL x) { return x; }
#endif

#define VECTOR (16 / (int)sizeof(ELEMENT))  // numbers of a vector

struct alignas(16) Vector {
    ELEMENT at[VECTOR];
};

// A vector of a row of `width` numbers, which begins at a multiple of 16 bytes if VECTOR divides the width. Zeros beyond
// the last number, and where there is no row.
__device__ Vector load(const ELEMENT* row, int vector, int width) {
    Vector loaded = {};
    if (!row || vector * VECTOR >= width) return loaded;
    if (width % VECTOR == 0) return ((const Vector*)row)[vector];
    for (int c = 0; c < VECTOR; ++c)
        if (vector * VECTOR + c < width) loaded.at[c] = row[vector * VECTOR + c];
    return loaded;
}

// Write a vector, or what of it is before `count`, to numbers from `first` on, which is a multiple of VECTOR.
__device__ void store(const Vector& vector, ELEMENT* numbers, long long first, long long count) {
    if (first + VECTOR <= count)
        *(Vector*)(numbers + first) = vector;
    else
#pragma unroll
        for (int c = 0; c < VECTOR; ++c)
            if (first + c < count) numbers[first + c] = vector.at[c];
}
