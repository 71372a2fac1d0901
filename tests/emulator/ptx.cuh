// The functions of backends/pegasusx_cupy/ptx.cuh in plain C++, from the tables of the PTX manual.
//
// Instructions of a warp exchange their operands through memory. A copy fills its destination with NaN when it begins
// and is made when the thread waits for it: whoever reads too early reads NaN.

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef BFLOAT16
#define INFINITY_BITS 0x7f80
#else
#define INFINITY_BITS 0x7c00
#endif

typedef unsigned short half_bits;

static float number_of_half(half_bits bits) {
    float value;
#ifdef BFLOAT16
    uint32_t word = (uint32_t)bits << 16;
    memcpy(&value, &word, 4);
#else
    _Float16 half;
    memcpy(&half, &bits, 2);
    value = (float)half;
#endif
    return value;
}

static half_bits rounded_half(float value) {
    half_bits bits;
#ifdef BFLOAT16
    uint32_t word;
    memcpy(&word, &value, 4);
    bits = value != value ? 0x7fff : (half_bits)((word + 0x7fff + (word >> 16 & 1)) >> 16);  // to nearest, ties to even
#else
    _Float16 half = (_Float16)value;
    memcpy(&bits, &half, 2);
#endif
    return bits;
}

static unsigned rounded_pair(float low, float high) { return rounded_half(low) | (unsigned)rounded_half(high) << 16; }

static float exp2_of(float x) { return std::exp2(x); }

namespace emulator {
struct Copy {
    void* to;
    const void* from;
    bool exists;
};
static std::vector<Copy> copies[MAX_THREADS];
static float operands[MAX_THREADS][6][2];  // pairs of numbers
static const void* row_addresses[MAX_THREADS];

static void check_aligned(const void* address, int bytes) {
    if ((uintptr_t)address % bytes) {
        fprintf(stderr, "an address is not a multiple of %d\n", bytes);
        abort();
    }
}
}  // namespace emulator

static void begin_copy(void* shared, const void* global, bool exists) {
    emulator::check_aligned(shared, 16);
    emulator::check_aligned(global, 16);
    memset(shared, 0xff, 16);
    emulator::copies[emulator::current].push_back({shared, global, exists});
}

static void finish_copies() {
    for (const emulator::Copy& copy : emulator::copies[emulator::current])
        copy.exists ? memcpy(copy.to, copy.from, 16) : memset(copy.to, 0, 16);
    emulator::copies[emulator::current].clear();
}

static void load_matrices(unsigned (&matrices)[4], const void* row) {
    using namespace emulator;
    check_aligned(row, 16);
    row_addresses[current] = row;
    __syncwarp();
    const int first = current / WARP * WARP, lane = current % WARP;
    for (int m = 0; m < 4; ++m) matrices[m] = ((const unsigned*)row_addresses[first + 8 * m + lane / 4])[lane % 4];
    __syncwarp();
}

static void load_transposed_matrices(unsigned (&matrices)[4], const half_bits* row) {
    using namespace emulator;
    check_aligned(row, 16);
    row_addresses[current] = row;
    __syncwarp();
    const int first = current / WARP * WARP, lane = current % WARP;
    for (int m = 0; m < 4; ++m) {
        half_bits pair[2];
        for (int i = 0; i < 2; ++i) {
            int r = 2 * (lane % 4) + i, column = lane / 4;
            pair[i] = ((const half_bits*)row_addresses[first + 8 * m + r])[column];
        }
        matrices[m] = pair[0] | (unsigned)pair[1] << 16;
    }
    __syncwarp();
}

#ifdef TF32
static unsigned rounded_tf32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value != value ? bits : (bits + 0x1000) & ~0x1fffu;  // to nearest, ties away from zero
}

static void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    using namespace emulator;
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 6; ++i) {
        if (mine[i] & 0x1fff && (mine[i] & 0x7f800000) != 0x7f800000) {
            fprintf(stderr, "an operand is not rounded to TF32\n");
            abort();
        }
        memcpy(&operands[current][i][0], &mine[i], 4);
    }
    __syncwarp();
    const int first = current / WARP * WARP, lane = current % WARP;
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 8; ++k)
            c[i] += operands[first + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2][0] *
                    operands[first + column * 4 + k % 4][4 + k / 4][0];
    }
    __syncwarp();
}
#else
static void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    using namespace emulator;
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 6; ++i) {
        operands[current][i][0] = number_of_half((half_bits)mine[i]);
        operands[current][i][1] = number_of_half((half_bits)(mine[i] >> 16));
    }
    __syncwarp();
    const int first = current / WARP * WARP, lane = current % WARP;
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; ++k)
            c[i] += operands[first + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2][k % 2] *
                    operands[first + column * 4 + k % 8 / 2][4 + k / 8][k % 2];
    }
    __syncwarp();
}
#endif
