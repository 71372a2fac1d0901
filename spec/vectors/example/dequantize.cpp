// Quantized matrices of bitsandbytes, decoded and compared bit by bit. Spec 18.
//
//     g++ -std=c++17 -O2 -ffp-contract=off -Wall -Wextra -Werror dequantize.cpp -o dequantize
//     ./dequantize ../quantized
//
// Products and sums are rounded one by one, in float: -ffp-contract=off forbids to fuse them.
// Exit code 0: all numbers are equal. 1: not. 2: bad usage or input.
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"
#include "safetensors.hpp"

using Floats = std::vector<float>;
using Tensors = std::map<std::string, safetensors::Tensor>;

const safetensors::Tensor& tensor(const Tensors& tensors, const std::string& name) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw std::runtime_error("the file has no tensor " + name);
    return found->second;
}

Floats floats(const Tensors& tensors, const std::string& name) {
    const std::vector<double>& data = tensor(tensors, name).data;
    return Floats(data.begin(), data.end());
}

// Spec 18.6: the scales, which double quantization stores in 8 bits.
Floats scales(const Tensors& tensors, const std::string& name, const json::Value& state) {
    Floats absmax = floats(tensors, name + ".absmax");
    if (!state.has("nested_offset")) return absmax;
    const Floats nested = floats(tensors, name + ".nested_absmax"), code = floats(tensors, name + ".nested_quant_map");
    const float offset = static_cast<float>(state["nested_offset"].number);
    const std::size_t block = state["nested_blocksize"].count();
    for (std::size_t i = 0; i < absmax.size(); ++i) {
        absmax[i] = code.at(static_cast<std::size_t>(absmax[i])) * nested.at(i / block);
        absmax[i] += offset;
    }
    return absmax;
}

// Spec 18.3 and 18.4: two codes a byte, the first one in the high four bits.
Floats from_4_bits(const Tensors& tensors, const std::string& name, const json::Value& state) {
    const std::vector<double>& packed = tensor(tensors, name).data;
    const Floats code = floats(tensors, name + ".quant_map"), absmax = scales(tensors, name, state);
    const std::size_t block = state["blocksize"].count();
    Floats numbers(state["shape"][0].count() * state["shape"][1].count());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        const unsigned byte = static_cast<unsigned>(packed.at(i / 2));
        numbers[i] = code.at(i % 2 == 0 ? byte >> 4 : byte & 15) * absmax.at(i / block);
    }
    return numbers;
}

// Spec 18.7: one scale a row.
Floats from_8_bits(const Tensors& tensors, const std::string& layer) {
    const safetensors::Tensor& codes = tensor(tensors, layer + ".weight");
    const Floats absmax = floats(tensors, layer + ".SCB");
    Floats numbers(codes.data.begin(), codes.data.end());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        numbers[i] *= absmax.at(i / codes.size(1));
        numbers[i] *= 1.0f / 127;
    }
    return numbers;
}

// Spec 18.9: the state of a matrix in 4 bits is JSON in a tensor of bytes; a matrix without it has 8 bits.
Floats dequantize(const Tensors& tensors, const std::string& layer) {
    const std::string name = layer + ".weight";
    for (const std::string kind : {"nf4", "fp4"}) {
        const auto found = tensors.find(name + ".quant_state.bitsandbytes__" + kind);
        if (found == tensors.end()) continue;
        const std::vector<double>& bytes = found->second.data;
        return from_4_bits(tensors, name, json::parse(std::string(bytes.begin(), bytes.end())));
    }
    return from_8_bits(tensors, layer);
}

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: dequantize FOLDER\n");
        return 2;
    }
    try {
        const std::string folder = argv[1];
        const Tensors packed = safetensors::load(folder + "/packed.safetensors");
        const Tensors expected = safetensors::load(folder + "/expected.safetensors");
        bool passed = true;
        for (const std::string layer : {"nf4", "fp4", "nf4-double", "int8"}) {
            const Floats found = dequantize(packed, layer), numbers = floats(expected, layer + ".weight");
            std::size_t wrong = found.size() != numbers.size();
            for (std::size_t i = 0; wrong == 0 && i < found.size(); ++i) {
                if (std::memcmp(&found[i], &numbers[i], sizeof(float)) != 0) wrong = i + 1;
            }
            std::printf("%s %s: %zu numbers\n", wrong ? "FAIL" : "pass", layer.c_str(), found.size());
            if (wrong && wrong <= found.size()) {
                std::printf("  number %zu is %a, not %a\n", wrong - 1, found[wrong - 1], numbers[wrong - 1]);
            }
            passed = passed && !wrong;
        }
        return passed ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "Error: %s\n", error.what());
        return 2;
    }
}
