// CMake precompiles headers for a target with sources only (see tandem_test in CMakeLists.txt).
