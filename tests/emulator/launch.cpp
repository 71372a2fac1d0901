// The kernels of a source file as a C function for ctypes. KERNELS is the path of the file, EACH_KERNEL their names,
// each as KERNEL(name).

#include <utility>

#include "cuda_on_cpu.h"

#include KERNELS

static void** arguments;

template <typename... Types, size_t... i>
static void call(void (*kernel)(Types...), std::index_sequence<i...>) {
    kernel(*(Types*)arguments[i]...);
}

template <typename... Types>
static void call(void (*kernel)(Types...)) {
    call(kernel, std::index_sequence_for<Types...>());
}

extern "C" int launch(const char* name, void** pointers, const int* grid, int num_threads, int backwards) {
    arguments = pointers;
#define KERNEL(function)                                                                                            \
    if (!strcmp(name, #function)) {                                                                                 \
        emulator::launch([] { call(function); }, {grid[0], grid[1], grid[2]}, num_threads, backwards);              \
        return 0;                                                                                                   \
    }
    EACH_KERNEL
    return 1;
}
