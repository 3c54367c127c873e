#include "common/version.h"

namespace tandem {

const char* Version() { return TANDEM_VERSION; }

}  // namespace tandem
