// The version of these programs: what --version prints, and what workers say of themselves.
#ifndef TANDEM_COMMON_VERSION_H_
#define TANDEM_COMMON_VERSION_H_

namespace tandem {

// "0.1.0", or "0.1.0+STAMP" where the build was given a stamp (-DTANDEM_BUILD=STAMP), as images are
// by what `git describe` says. For ever.
const char* Version();

}  // namespace tandem

#endif  // TANDEM_COMMON_VERSION_H_
