// Sums and maxima over the threads of a thread block.
//
// Macros: REAL; THREADS, of a thread block.
//
// A name in [brackets] labels a line for tests/test_cupy.py, which breaks each of these lines in turn.

#define WARPS (THREADS / 32)

enum Operation { SUM, MAX };

__device__ REAL combined(Operation operation, REAL a, REAL b) {
    if (operation == SUM) return a + b;
    return b > a ? b : a;
}

// Combine the values of all threads; every thread gets the result.
__device__ REAL over_block(Operation operation, REAL value) {
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
