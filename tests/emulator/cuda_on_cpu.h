// Runs CUDA C++ kernels on the CPU: the threads of a thread block are fibers that switch at barriers and shuffles.
//
// Thread blocks run one after another. Each warp runs alone until its threads wait at a barrier of the block, and in it
// each thread until it reaches the next barrier, in ascending or in descending order: code with a missing barrier reads
// data that is not written yet, or already overwritten.
// Shared memory is NaN when a thread block starts.

#pragma once
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

// Go on where another fiber stopped: the registers that a function keeps are on its stack. setjmp and swapcontext take
// most of a test's time. (x86-64)
extern "C" void switch_stacks(char** stopped, char* resumed);
asm(R"(
.text
switch_stacks:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");

// A fiber is made once and runs the kernel for a thread of each later block.
struct Fiber {
    std::unique_ptr<char[]> stack;
    char* position;
    bool is_done;
    long arrival;  // the generation of the block's barrier that the thread waits for; -1: it does not
};
static std::vector<Fiber> fibers;
static char* scheduler;
static int current, first_of_warp, size_of_warp, step;
static void (*kernel)();

static bool can_run(int thread);

static void resume(int thread, char** stopped) {
    current = thread;
    threadIdx = {thread, 0, 0};
    switch_stacks(stopped, fibers[thread].position);
}

// Let the next thread of the warp run, or the scheduler find one.
static void give_way() {
    const int stopped = current;
    const int next = first_of_warp + (stopped - first_of_warp + size_of_warp + step) % size_of_warp;
    if (next != stopped && can_run(next))
        resume(next, &fibers[stopped].position);
    else
        switch_stacks(&fibers[stopped].position, scheduler);
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
        while (arrival == generation) give_way();
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

static bool can_run(int thread) {
    return !fibers[thread].is_done && !block_barrier.is_closed_for(fibers[thread].arrival);
}

static void run_fiber() {
    for (;;) {
        kernel();
        fibers[current].is_done = true;
        block_barrier.leave();
        warp_barriers[current / WARP].leave();
        switch_stacks(&fibers[current].position, scheduler);
    }
}

// Prepare a stack as `switch_stacks` leaves it: six registers, then where to go on.
static void prepare(Fiber& fiber) {
    fiber.stack.reset(new char[STACK]);
    void** top = (void**)((size_t)(fiber.stack.get() + STACK) / 16 * 16) - 2;
    *top = (void*)run_fiber;
    fiber.position = (char*)(top - 6);
}

// Run the threads of a warp in turns until each is done or waits at the block's barrier.
static void run_warp(int warp, int num_threads, bool backwards) {
    first_of_warp = warp * WARP;
    size_of_warp = num_threads - first_of_warp < WARP ? num_threads - first_of_warp : WARP;
    step = backwards ? -1 : 1;
    for (bool is_running = true; is_running;) {
        is_running = false;
        for (int i = 0; i < size_of_warp; ++i) {
            const int thread = first_of_warp + (backwards ? size_of_warp - 1 - i : i);
            if (!can_run(thread)) continue;
            is_running = true;
            resume(thread, &scheduler);
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
    while ((int)fibers.size() < num_threads) {
        fibers.emplace_back();
        prepare(fibers.back());
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
