#include "common/tokenizer/byte_symbols.h"

#include <array>
#include <cstddef>

#include "common/tokenizer/utf8.h"

namespace tandem {
namespace {

constexpr int kNumSymbolCodePoints = 256 + 68;

bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

struct SymbolTables {
  std::array<char32_t, 256> symbol_of_byte;
  std::array<int16_t, kNumSymbolCodePoints> byte_of_symbol;  // -1: no symbol

  SymbolTables() {
    byte_of_symbol.fill(-1);
    char32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t symbol = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
      symbol_of_byte[byte] = symbol;
      byte_of_symbol[symbol] = static_cast<int16_t>(byte);
    }
  }
};

const SymbolTables& Tables() {
  static const SymbolTables tables;
  return tables;
}

}  // namespace

std::string ByteSymbol(uint8_t byte) {
  const char32_t symbol = Tables().symbol_of_byte[byte];
  if (symbol < 0x80) return std::string(1, static_cast<char>(symbol));
  return {static_cast<char>(0xC0 | (symbol >> 6)), static_cast<char>(0x80 | (symbol & 0x3F))};
}

std::string TokenToBytes(absl::string_view token) {
  const SymbolTables& tables = Tables();
  std::string bytes;
  bytes.reserve(token.size());
  size_t position = 0;
  while (position < token.size()) {
    const char32_t code_point = NextCodePoint(token, &position);
    if (code_point >= kNumSymbolCodePoints || tables.byte_of_symbol[code_point] < 0) {
      return std::string(token);
    }
    bytes.push_back(static_cast<char>(tables.byte_of_symbol[code_point]));
  }
  return bytes;
}

}  // namespace tandem
