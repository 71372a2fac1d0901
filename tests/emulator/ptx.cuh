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

// Show the address of a row to the warp; return those of all its threads.
static const void* const* show_row(const void* row) {
    using namespace emulator;
    check_aligned(row, 16);
    row_addresses[current] = row;
    __syncwarp();
    return row_addresses + current / WARP * WARP;
}

static void load_matrices(unsigned (&matrices)[4], const void* row) {
    const void* const* rows = show_row(row);
    const int lane = emulator::current % emulator::WARP;
    for (int m = 0; m < 4; ++m) matrices[m] = ((const unsigned*)rows[8 * m + lane / 4])[lane % 4];
    __syncwarp();
}

static void load_transposed_matrices(unsigned (&matrices)[4], const half_bits* row) {
    const void* const* rows = show_row(row);
    const int lane = emulator::current % emulator::WARP, pair = 2 * (lane % 4), column = lane / 4;
    for (int m = 0; m < 4; ++m) {
        const half_bits *first = (const half_bits*)rows[8 * m + pair], *second = (const half_bits*)rows[8 * m + pair + 1];
        matrices[m] = first[column] | (unsigned)second[column] << 16;
    }
    __syncwarp();
}

#ifdef TF32
static unsigned rounded_tf32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value != value ? bits : (bits + 0x1000) & ~0x1fffu;  // to nearest, ties away from zero
}

#define NUMBERS 1  // in 32 bits of an operand
static void unpack(float* numbers, unsigned bits) {
    if (bits & 0x1fff && (bits & 0x7f800000) != 0x7f800000) {
        fprintf(stderr, "an operand is not rounded to TF32\n");
        abort();
    }
    memcpy(numbers, &bits, 4);
}
#else
#define NUMBERS 2
static void unpack(float* numbers, unsigned bits) {
    numbers[0] = number_of_half((half_bits)bits);
    numbers[1] = number_of_half((half_bits)(bits >> 16));
}
#endif

static void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    using namespace emulator;
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 6; ++i) unpack(operands[current][i], mine[i]);
    __syncwarp();
    const int first = current / WARP * WARP, lane = current % WARP, half = 4 * NUMBERS;
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 2 * half; ++k) {
            const int thread = k % half / NUMBERS, number = k % NUMBERS;
            c[i] += operands[first + row % 8 * 4 + thread][row / 8 + k / half * 2][number] *
                    operands[first + column * 4 + thread][4 + k / half][number];
        }
    }
    __syncwarp();
}
