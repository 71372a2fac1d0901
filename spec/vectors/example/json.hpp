// A small JSON reader: all that safetensors headers and manifests need. C++17, no dependencies.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace json {

struct Value {
    enum class Kind { null, boolean, number, text, list, object };

    Kind kind = Kind::null;
    double number = 0;  // also of a boolean: 0 or 1
    std::string text;
    std::vector<Value> list;
    std::map<std::string, Value> members;

    bool has(const std::string& key) const { return members.count(key) != 0; }

    const Value& operator[](const std::string& key) const {
        const auto found = members.find(key);
        if (found == members.end()) throw std::runtime_error("JSON: there is no '" + key + "'");
        return found->second;
    }

    const Value& operator[](std::size_t index) const {
        if (index >= list.size()) throw std::runtime_error("JSON: a list has no element " + std::to_string(index));
        return list[index];
    }

    std::size_t size() const { return list.size(); }

    std::size_t count() const {  // as a size or an index
        if (kind != Kind::number || !(number >= 0 && number < 9e15)) throw std::runtime_error("JSON: expected a count");
        return static_cast<std::size_t>(number);
    }
};

class Reader {
public:
    explicit Reader(const std::string& text) : text_(text) {}

    Value document() {
        Value value = any();
        skip_spaces();
        if (at_ != text_.size()) fail("text after the end");
        return value;
    }

private:
    [[noreturn]] void fail(const std::string& why) const {
        throw std::runtime_error("JSON: " + why + " at byte " + std::to_string(at_));
    }

    void skip_spaces() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

    char peek() {
        skip_spaces();
        if (at_ == text_.size()) fail("it ends too early");
        return text_[at_];
    }

    bool take(char expected) {
        if (peek() != expected) return false;
        ++at_;
        return true;
    }

    void need(char expected) {
        if (!take(expected)) fail(std::string("expected '") + expected + "'");
    }

    Value any() {
        switch (peek()) {
            case '{': return object();
            case '[': return list();
            case '"': return text(string());
            case 't': return word("true", Value::Kind::boolean, 1);
            case 'f': return word("false", Value::Kind::boolean, 0);
            case 'n': return word("null", Value::Kind::null, 0);
            default: return number();
        }
    }

    Value object() {
        Value value;
        value.kind = Value::Kind::object;
        need('{');
        if (take('}')) return value;
        do {
            if (peek() != '"') fail("expected a name");
            const std::string key = string();
            need(':');
            value.members[key] = any();
        } while (take(','));
        need('}');
        return value;
    }

    Value list() {
        Value value;
        value.kind = Value::Kind::list;
        need('[');
        if (take(']')) return value;
        do {
            value.list.push_back(any());
        } while (take(','));
        need(']');
        return value;
    }

    static Value text(const std::string& content) {
        Value value;
        value.kind = Value::Kind::text;
        value.text = content;
        return value;
    }

    std::string string() {
        need('"');
        std::string content;
        while (at_ < text_.size() && text_[at_] != '"') {
            if (text_[at_] == '\\') fail("an escape, which names and words of these files do not have");
            content += text_[at_++];
        }
        if (at_ == text_.size()) fail("a string has no end");
        ++at_;
        return content;
    }

    Value word(const std::string& expected, Value::Kind kind, double number) {
        if (text_.compare(at_, expected.size(), expected) != 0) fail("expected '" + expected + "'");
        at_ += expected.size();
        Value value;
        value.kind = kind;
        value.number = number;
        return value;
    }

    Value number() {
        Value value;
        value.kind = Value::Kind::number;
        char* end = nullptr;
        value.number = std::strtod(text_.c_str() + at_, &end);
        const auto stop = static_cast<std::size_t>(end - text_.c_str());
        if (stop == at_) fail("expected a value");
        at_ = stop;
        return value;
    }

    const std::string& text_;
    std::size_t at_ = 0;
};

inline Value parse(const std::string& text) { return Reader(text).document(); }

}  // namespace json
