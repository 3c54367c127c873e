// Files that the tool reads and writes. FILE "-" is standard input.
#ifndef TANDEM_TOOLS_TANDEM_IO_H_
#define TANDEM_TOOLS_TANDEM_IO_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tokenizer/chat_template.h"
#include "nlohmann/json.hpp"

namespace tandem::tool {

absl::StatusOr<std::string> ReadFile(const std::string& path);
// Whitespace-separated numbers.
absl::StatusOr<std::vector<int32_t>> ReadIdsFile(const std::string& path);
// "0,5,4095", ascending.
absl::StatusOr<std::vector<uint32_t>> ParsePositions(const std::string& text);

// Calls `handle` with each line's JSON object; blank lines are skipped. Errors name file and line.
absl::Status ForEachJsonLine(const std::string& path,
                             const std::function<absl::Status(const nlohmann::json&)>& handle);

// The member `name` of a JSON object, as a string or as ids.
absl::StatusOr<std::string> StringMember(const nlohmann::json& object, const char* name);
absl::StatusOr<std::vector<int32_t>> IdsMember(const nlohmann::json& object, const char* name);

// The member "messages": an array of objects with the strings "role" and "content".
absl::StatusOr<std::vector<ChatMessage>> MessagesMember(const nlohmann::json& object);

// JSON text with bytes that are not valid UTF-8 replaced.
std::string Dump(const nlohmann::json& json);

// NumPy .npy, version 1.0, little-endian f32 of shape [rows, width].
absl::Status WriteNpy(const std::string& path, const std::vector<std::string>& rows, size_t width);

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_IO_H_
