// Reads safetensors files whole: F64, F32, I64, I8, U8 and BOOL, on little-endian machines. C++17, no dependencies.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"

namespace safetensors {

// Every dtype becomes double, exactly: the ids and masks of a vector are small whole numbers.
struct Tensor {
    std::vector<std::size_t> shape;
    std::vector<double> data;  // the last axis varies fastest

    std::size_t size(std::size_t axis) const { return shape.at(axis); }

    double at(const std::vector<std::size_t>& index) const {
        std::size_t offset = 0;
        for (std::size_t axis = 0; axis < shape.size(); ++axis) offset = offset * shape[axis] + index.at(axis);
        return data.at(offset);
    }
};

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

template <typename Element>
std::vector<double> as_doubles(const char* bytes, std::size_t count) {
    std::vector<double> data(count);
    for (std::size_t i = 0; i < count; ++i) {
        Element element;
        std::memcpy(&element, bytes + i * sizeof(Element), sizeof(Element));
        data[i] = static_cast<double>(element);
    }
    return data;
}

// 8 bytes: the header's length N; N bytes: JSON, for each tensor its dtype, shape and place; then the tensors' bytes.
inline std::map<std::string, Tensor> load(const std::string& path) {
    const std::string content = read_file(path);
    std::uint64_t header_size = 0;
    if (content.size() < sizeof header_size) throw std::runtime_error(path + ": truncated, it has no header");
    std::memcpy(&header_size, content.data(), sizeof header_size);
    const std::size_t after_size = content.size() - sizeof header_size;
    if (header_size > after_size) throw std::runtime_error(path + ": truncated inside the header");
    const char* const start = content.data() + sizeof header_size + header_size;
    const std::size_t num_bytes = after_size - header_size;

    std::map<std::string, Tensor> tensors;
    const json::Value header = json::parse(content.substr(sizeof header_size, header_size));
    for (const auto& [name, entry] : header.members) {
        if (name == "__metadata__") continue;
        const std::string dtype = entry["dtype"].text;
        const std::size_t width = dtype == "F64" || dtype == "I64" ? 8 : dtype == "F32" ? 4 : 1;
        if (width == 1 && dtype != "I8" && dtype != "U8" && dtype != "BOOL") {
            throw std::runtime_error(path + ": " + name + " is " + dtype + ", not F64, F32, I64, I8, U8 or BOOL");
        }
        Tensor tensor;
        std::size_t count = 1;
        for (const json::Value& size : entry["shape"].list) {
            tensor.shape.push_back(size.count());
            count *= size.count();
        }
        const std::size_t first = entry["data_offsets"][0].count(), last = entry["data_offsets"][1].count();
        if (last > num_bytes) throw std::runtime_error(path + ": truncated, " + name + " is not there as a whole");
        if (first > last || last - first != count * width) {
            throw std::runtime_error(path + ": " + name + " has another number of bytes than its shape needs");
        }
        if (dtype == "F64") tensor.data = as_doubles<double>(start + first, count);
        if (dtype == "I64") tensor.data = as_doubles<std::int64_t>(start + first, count);
        if (dtype == "F32") tensor.data = as_doubles<float>(start + first, count);
        if (dtype == "I8") tensor.data = as_doubles<std::int8_t>(start + first, count);
        if (dtype == "U8" || dtype == "BOOL") tensor.data = as_doubles<std::uint8_t>(start + first, count);
        tensors.emplace(name, std::move(tensor));
    }
    return tensors;
}

}  // namespace safetensors
