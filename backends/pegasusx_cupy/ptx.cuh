// The instructions of NVIDIA's PTX that CUDA C++ has no name for without further headers, from sm_80 on.
//
// tests/emulator/ptx.cuh implements each of them in plain C++, from the tables of the PTX manual.
// BFLOAT16 chooses bfloat16; else half precision means float16. TF32 chooses products of float32 numbers.

#ifdef BFLOAT16
#define HALF "bf16"
#define INFINITY_BITS 0x7f80
#else
#define HALF "f16"
#define INFINITY_BITS 0x7c00
#endif

typedef unsigned short half_bits;

// Two numbers rounded to half precision, the first in the lower 16 bits.
__device__ unsigned rounded_pair(float low, float high) {
    unsigned pair;
    asm("cvt.rn." HALF "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ half_bits rounded_half(float value) { return (half_bits)rounded_pair(value, 0); }

__device__ float number_of_half(half_bits bits) {
    float number;
#ifdef BFLOAT16
    number = __int_as_float((int)bits << 16);
#else
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
#endif
    return number;
}

// 2^x, with a relative error of 2^-22.
__device__ float exp2_of(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Begin to copy 16 bytes to shared memory, or to fill them with zeros. Both addresses are multiples of 16.
__device__ void begin_copy(void* shared, const void* global, bool exists) {
    unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(exists ? 16 : 0));
}

// Wait until the copies that this thread began are complete; a barrier makes those of other threads visible.
__device__ void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Load four matrices of eight rows: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes. It gets four bytes of
// row l / 4 of each matrix: the numbers 2 (l % 4) and 2 (l % 4) + 1 in half precision, else number l % 4.
__device__ void load_matrices(unsigned (&matrices)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address));
}

// The same in half precision, of the transposed matrices.
__device__ void load_transposed_matrices(unsigned (&matrices)[4], const half_bits* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address));
}

#ifdef TF32
// Round to the 11 significant bits of TF32.
__device__ unsigned rounded_tf32(float value) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

// c += a b, where a is 16 x 8, b is 8 x 8, and c is 16 x 8. With row = l / 4 and column = l % 4, lane l has
//   of a: (row, column), (row + 8, column), (row, column + 4), (row + 8, column + 4);
//   of b: (column, row), (column + 4, row);
//   of c: (row, 2 column), (row, 2 column + 1), (row + 8, 2 column), (row + 8, 2 column + 1).
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
// c += a b, where a is 16 x 16, b is 16 x 8, and c is 16 x 8 in float32. With row = l / 4 and pair = 2 (l % 4), lane l
// has
//   of a: (row, pair), (row + 8, pair), (row, pair + 8), (row + 8, pair + 8), each with the next number of the row;
//   of b: (pair, row), (pair + 8, row), each with the next number of the column;
//   of c: (row, pair), (row, pair + 1), (row + 8, pair), (row + 8, pair + 1).
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." HALF "." HALF ".f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
