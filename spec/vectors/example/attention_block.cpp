// One block of block-local attention, computed from a vector's own queries, keys and values and compared with it.
//
//     g++ -std=c++17 -O2 -Wall -Wextra -Werror attention_block.cpp -o attention_block
//     ./attention_block ../staggered 1 2          # encoder layer 1, block 2, in double
//     ./attention_block ../staggered 1 2 float
//
// Exit code 0: within what rounding does. 1: not. 2: bad usage or input.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"
#include "safetensors.hpp"

using Tensors = std::map<std::string, safetensors::Tensor>;

constexpr double kLowest = std::numeric_limits<double>::lowest();  // what masked scores are in a trace
constexpr double kHidden = -1e3;  // a masked score of another implementation is at most this

struct Vector {
    json::Value manifest;
    Tensors inputs, trace;

    const json::Value& entry(const std::string& name) const {
        for (const json::Value& tensor : manifest["tensors"].list) {
            if (tensor["name"].text == name) return tensor;
        }
        throw std::runtime_error("the vector has no tensor " + name);
    }

    const safetensors::Tensor& tensor(const std::string& name) const {
        const auto found = trace.find(name);
        if (found == trace.end()) throw std::runtime_error("the vector has no tensor " + name);
        if (entry(name).has("sampled")) throw std::runtime_error(name + " is sampled: a block needs all its rows");
        return found->second;
    }
};

// The rule of README.md: sigma for each row of a real token, the bound for each of its elements.
class Comparison {
public:
    Comparison(const Vector& vector, const std::string& name, const std::string& arithmetic, const std::string& way)
        : name_(name), expected_(vector.tensor(name)) {
        const json::Value& tolerance = vector.entry(name)["tolerances"][arithmetic][way];
        sigma_ = tolerance[0].number;
        bound_ = tolerance[1].number;
    }

    template <typename Real>
    void row(const std::vector<std::size_t>& index, const std::vector<Real>& found) {
        double sum = 0;
        std::vector<std::size_t> at = index;
        at.push_back(0);
        for (; at.back() < found.size(); ++at.back()) {
            const double expected = expected_.at(at), actual = static_cast<double>(found[at.back()]);
            double error = std::fabs(actual - expected);
            if (expected == kLowest) error = actual <= kHidden ? 0 : std::numeric_limits<double>::infinity();
            if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
            sum += error * error;
            largest_ = std::max(largest_, error);
        }
        worst_row_ = std::max(worst_row_, std::sqrt(sum / static_cast<double>(found.size())));
    }

    bool report() const {
        const bool passed = worst_row_ <= 6 * sigma_ && largest_ <= bound_;
        std::printf("%s %s: row %.2g (sigma %.2g), element %.2g (bound %.2g)\n", passed ? "pass" : "FAIL",
                    name_.c_str(), worst_row_, sigma_, largest_, bound_);
        return passed;
    }

private:
    std::string name_;
    const safetensors::Tensor& expected_;
    double sigma_ = 0, bound_ = 0, worst_row_ = 0, largest_ = 0;
};

template <typename Real>
using Row = std::vector<Real>;

// Part of the last axis of a tensor as another implementation holds it: a masked score is its own lowest number.
template <typename Real>
Row<Real> row_of(const safetensors::Tensor& tensor, std::vector<std::size_t> index, std::size_t first,
                 std::size_t count) {
    Row<Real> row(count);
    index.push_back(0);
    for (std::size_t i = 0; i < count; ++i) {
        index.back() = first + i;
        const double value = tensor.at(index);
        row[i] = value == kLowest ? std::numeric_limits<Real>::lowest() : static_cast<Real>(value);
    }
    return row;
}

// Spec 6.4: the query is scaled, and what may not be seen gets the lowest number there is.
template <typename Real>
Row<Real> scores_of(const Row<Real>& q, const std::vector<Row<Real>>& keys, const std::vector<bool>& visible) {
    const Real scale = static_cast<Real>(1 / std::sqrt(static_cast<double>(q.size())));
    Row<Real> scores(keys.size(), std::numeric_limits<Real>::lowest());
    for (std::size_t x = 0; x < keys.size(); ++x) {
        if (!visible[x]) continue;
        scores[x] = 0;
        for (std::size_t f = 0; f < q.size(); ++f) scores[x] += q[f] * scale * keys[x][f];
    }
    return scores;
}

// Spec 6.3.
template <typename Real>
Row<Real> softmax(const Row<Real>& scores) {
    const Real highest = *std::max_element(scores.begin(), scores.end());
    Row<Real> probs(scores.size());
    Real total = 0;
    for (std::size_t x = 0; x < scores.size(); ++x) total += probs[x] = std::exp(scores[x] - highest);
    for (Real& prob : probs) prob /= total;
    return probs;
}

template <typename Real>
Row<Real> weighted_sum(const Row<Real>& probs, const std::vector<Row<Real>>& values) {
    Row<Real> context(values[0].size(), 0);
    for (std::size_t x = 0; x < probs.size(); ++x) {
        for (std::size_t f = 0; f < context.size(); ++f) context[f] += probs[x] * values[x][f];
    }
    return context;
}

// Spec 7.1: the tokens [start, stop) attend to the G global tokens, which no mask hides, and to each other. Each of the
// three operations starts from the vector's own tensors, so that the first mistake does not spoil the rest.
template <typename Real>
bool check_block(const Vector& vector, std::size_t layer, std::size_t block, const std::string& arithmetic) {
    const std::string attention = "encoder.layers." + std::to_string(layer) + ".self_attn.";
    const std::string place = attention + "local." + std::to_string(block) + ".";
    const json::Value& slice = vector.entry(place + "scores")["slice"];
    const std::size_t start = slice[0].count(), stop = slice[1].count();

    const auto& q = vector.tensor(attention + "tokens.q_proj");  // (B, T, D): head h has the features [h F, (h + 1) F)
    const auto& k = vector.tensor(attention + "tokens.k_proj");
    const auto& v = vector.tensor(attention + "tokens.v_proj");
    const auto& global_k = vector.tensor(attention + "globals.k_proj");  // (B, G, D)
    const auto& global_v = vector.tensor(attention + "globals.v_proj");
    const auto& scores = vector.tensor(place + "scores");  // (B, H, S, G + S)
    const auto& probs = vector.tensor(place + "probs");
    const auto& is_real = vector.inputs.at("attention_mask");
    const auto& is_valid = vector.inputs.at("valid.source");

    const std::size_t H = vector.manifest["config"]["encoder_attention_heads"].count();
    const std::size_t B = q.size(0), F = q.size(2) / H, G = global_k.size(1), X = G + stop - start;

    const std::string way = arithmetic == "float64" ? "exact" : "rounded";  // a float holds the inputs rounded
    Comparison scores_check(vector, place + "scores", arithmetic, way);
    Comparison probs_check(vector, place + "probs", arithmetic, way);
    Comparison context_check(vector, place + "context", arithmetic, way);
    for (std::size_t b = 0; b < B; ++b) {
        std::vector<bool> visible(G, true);
        for (std::size_t t = start; t < stop; ++t) visible.push_back(is_real.at({b, t}) != 0);
        for (std::size_t h = 0; h < H; ++h) {
            std::vector<Row<Real>> keys, values;
            for (std::size_t g = 0; g < G; ++g) {
                keys.push_back(row_of<Real>(global_k, {b, g}, h * F, F));
                values.push_back(row_of<Real>(global_v, {b, g}, h * F, F));
            }
            for (std::size_t t = start; t < stop; ++t) {
                keys.push_back(row_of<Real>(k, {b, t}, h * F, F));
                values.push_back(row_of<Real>(v, {b, t}, h * F, F));
            }
            for (std::size_t t = start; t < stop; ++t) {
                if (is_valid.at({b, t}) == 0) continue;  // nobody reads the row of a padding token
                const std::vector<std::size_t> index{b, h, t - start};
                scores_check.row(index, scores_of(row_of<Real>(q, {b, t}, h * F, F), keys, visible));
                probs_check.row(index, softmax(row_of<Real>(scores, index, 0, X)));
                context_check.row(index, weighted_sum(row_of<Real>(probs, index, 0, X), values));
            }
        }
    }
    const bool passed[] = {scores_check.report(), probs_check.report(), context_check.report()};
    return passed[0] && passed[1] && passed[2];
}

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const bool is_float = arguments.size() == 4 && arguments[3] == "float";
    if (arguments.size() != 3 && !is_float) {
        std::fprintf(stderr, "usage: attention_block FOLDER LAYER BLOCK [float]\n");
        return 2;
    }
    try {
        const std::string& folder = arguments[0];
        const Vector vector{json::parse(safetensors::read_file(folder + "/manifest.json")),
                            safetensors::load(folder + "/inputs.safetensors"),
                            safetensors::load(folder + "/trace.safetensors")};
        const std::size_t layer = std::stoul(arguments[1]), block = std::stoul(arguments[2]);
        const bool passed = is_float ? check_block<float>(vector, layer, block, "float32")
                                     : check_block<double>(vector, layer, block, "float64");
        return passed ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "Error: %s\n", error.what());
        return 2;
    }
}
