// Merge the parts of long rows of attention. `exp_of` is the weight of a difference between scores.

// A part has the weighted sum of its values, its largest score, and the sum of its weights, both relative to that score.
// Grid: (rows); a thread computes some of the features.
extern "C" __global__ void merge_parts(const REAL* sums, const REAL* largest, const REAL* totals, ELEMENT* context,
                                       int num_parts) {
    REAL row_largest = -LARGEST, total = 0;
    for (int part = 0; part < num_parts; ++part) {
        REAL other = largest[(long long)part * gridDim.x + blockIdx.x];
        row_largest = other > row_largest ? other : row_largest;
    }
    for (int part = 0; part < num_parts; ++part) {
        long long row = (long long)part * gridDim.x + blockIdx.x;
        total += totals[row] * exp_of(largest[row] - row_largest);  // [total of all parts]
    }
    for (int feature = threadIdx.x; feature < HEAD_DIM; feature += THREADS) {
        REAL sum = 0;
        for (int part = 0; part < num_parts; ++part) {
            long long row = (long long)part * gridDim.x + blockIdx.x;
            sum += sums[row * HEAD_DIM + feature] * exp_of(largest[row] - row_largest);  // [sum of all parts]
        }
        context[(long long)blockIdx.x * HEAD_DIM + feature] = rounded(sum / total);
    }
}
