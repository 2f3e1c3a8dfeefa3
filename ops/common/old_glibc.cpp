// A library that is compiled with glibc 2.32 or later also loads with an older one: libstdc++'s std::shared_ptr reads
// this variable of glibc 2.32, which is defined here instead. False is always correct: counters are then atomic.
#if defined(__linux__)
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
