// Merge the parts of long rows of attention. `exp_of` is the weight of a difference between scores.

#include "reduction.cuh"

// A part has the weighted sum of its values, its largest score, and the sum of its weights, both relative to that score.
// Grid: (rows). Each warp adds up some of the parts; its lanes take adjacent features.
extern "C" __global__ void merge_parts(const REAL* sums, const REAL* largest, const REAL* totals, ELEMENT* context,
                                       int num_parts) {
    __shared__ REAL of_warps[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long rows = gridDim.x, row = blockIdx.x;
    REAL row_largest = -LARGEST, total = 0;
    for (int part = threadIdx.x; part < num_parts; part += THREADS)
        row_largest = combined(MAX, row_largest, largest[part * rows + row]);
    row_largest = over_block(MAX, row_largest);
    for (int part = threadIdx.x; part < num_parts; part += THREADS)
        total += totals[part * rows + row] * exp_of(largest[part * rows + row] - row_largest);  // [total of all parts]
    total = over_block(SUM, total);
    for (int first = 0; first < HEAD_DIM; first += 32) {
        const int feature = first + lane;
        REAL sum = 0;
        for (int part = warp; part < num_parts && feature < HEAD_DIM; part += WARPS) {
            const long long at = part * rows + row;
            sum += sums[at * HEAD_DIM + feature] * exp_of(largest[at] - row_largest);  // [sum of all parts]
        }
        of_warps[warp][lane] = sum;
        __syncthreads();  // [barrier before merging] the sums of the warps are complete
        if (warp == 0 && feature < HEAD_DIM) {
            for (int other = 1; other < WARPS; ++other) sum += of_warps[other][lane];
            context[row * HEAD_DIM + feature] = rounded(sum / total);
        }
        __syncthreads();  // [barrier after merging] they are no longer read
    }
}
