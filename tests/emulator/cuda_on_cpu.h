// Runs CUDA C++ kernels on the CPU: the threads of a thread block are fibers that switch at barriers and shuffles.
//
// Thread blocks run one after another. Each warp runs alone until its threads wait at a barrier of the block, and in it
// each thread until it reaches the next barrier, in ascending or in descending order: code with a missing barrier reads
// data that is not written yet, or already overwritten.
// Shared memory is NaN when a thread block starts.

#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__ static
#define __shared__ static __attribute__((section("shared_memory")))
// Weak: null where kernels have no shared memory.
extern char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));
using std::exp;
using std::sqrt;

static float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

struct Dim3 {
    int x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
constexpr int STACK = 1 << 18, WARP = 32, MAX_THREADS = 1024;

// A fiber is made once and runs the kernel for a thread of each later block. Switches are jumps between stacks:
// swapcontext is a system call for each, which takes most of the time, and is needed only to enter a new stack.
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    jmp_buf position;
    bool is_done;
    long arrival;  // the generation of the block's barrier that the thread waits for; -1: it does not
};
static std::vector<Fiber> fibers;
static ucontext_t starter;
static jmp_buf scheduler;
static int current;
static void (*kernel)();

static void jump(jmp_buf from, jmp_buf to) {
    if (!_setjmp(from)) _longjmp(to, 1);
}

struct Barrier {
    int expected = 0, arrived = 0;
    long generation = 0;

    void open() {
        if (arrived < expected) return;
        arrived = 0;
        ++generation;
    }
    void wait() {
        long arrival = generation;
        ++arrived;
        open();
        while (arrival == generation) jump(fibers[current].position, scheduler);
    }
    bool is_closed_for(long arrival) const { return arrival == generation; }
    void leave() {
        --expected;
        open();
    }
};
static Barrier block_barrier, warp_barriers[MAX_THREADS / WARP];
// What the threads of a warp show each other, in turns at two places: nobody writes to one that another still reads.
static double exchanged[2][MAX_THREADS];
static bool turns[MAX_THREADS];

static void run_fiber() {
    for (;;) {
        jump(fibers[current].position, scheduler);
        kernel();
        fibers[current].is_done = true;
        block_barrier.leave();
        warp_barriers[current / WARP].leave();
    }
}

static void start(Fiber& fiber) {
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, run_fiber, 0);
    if (!_setjmp(scheduler)) swapcontext(&starter, &fiber.context);
}

// Run the threads of a warp in turns until each is done or waits at the block's barrier.
static void run_warp(int warp, int num_threads, bool backwards) {
    const int first = warp * WARP, size = num_threads - first < WARP ? num_threads - first : WARP;
    for (bool is_running = true; is_running;) {
        is_running = false;
        for (int i = 0; i < size; ++i) {
            current = first + (backwards ? size - 1 - i : i);
            threadIdx = {current, 0, 0};
            if (fibers[current].is_done || block_barrier.is_closed_for(fibers[current].arrival)) continue;
            is_running = true;
            jump(scheduler, fibers[current].position);
        }
    }
}

static void run_block(int num_threads, bool backwards) {
    memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    block_barrier = {num_threads};
    for (int first = 0; first < num_threads; first += WARP)
        warp_barriers[first / WARP] = {num_threads - first < WARP ? num_threads - first : WARP};
    for (int i = 0; i < num_threads; ++i) {
        fibers[i].is_done = false;
        fibers[i].arrival = -1;
    }
    const int num_warps = (num_threads + WARP - 1) / WARP;
    while (block_barrier.expected)
        for (int i = 0; i < num_warps; ++i) run_warp(backwards ? num_warps - 1 - i : i, num_threads, backwards);
}

static void launch(void (*function)(), Dim3 grid, int num_threads, bool backwards) {
    kernel = function;
    gridDim = grid;
    blockDim = {num_threads, 1, 1};
    for (current = (int)fibers.size(); current < num_threads; ++current) {
        fibers.emplace_back();
        start(fibers.back());
    }
    for (int z = 0; z < grid.z; ++z)
        for (int y = 0; y < grid.y; ++y)
            for (int x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                run_block(num_threads, backwards);
            }
}
}  // namespace emulator

static void __syncthreads() {
    long& arrival = emulator::fibers[emulator::current].arrival;
    arrival = emulator::block_barrier.generation;
    emulator::block_barrier.wait();
    arrival = -1;
}
static void __syncwarp() { emulator::warp_barriers[emulator::current / emulator::WARP].wait(); }

// Show a value to the warp; return where those of all threads are.
static const double* exchange(double value) {
    const int thread = emulator::current;
    double* const shown = emulator::exchanged[emulator::turns[thread] = !emulator::turns[thread]];
    shown[thread] = value;
    __syncwarp();
    return shown;
}

static bool __any_sync(unsigned, bool condition) {
    const int first = emulator::current / emulator::WARP * emulator::WARP;
    const double* conditions = exchange(condition);
    bool found = false;
    for (int i = first; i < first + emulator::WARP; ++i) found = found || conditions[i];
    return found;
}

template <typename T>
static T __shfl_xor_sync(unsigned, T value, int lane_mask) {
    return (T)exchange(value)[emulator::current ^ lane_mask];
}
