#ifndef QKN_OPTICS_ISA_H
#define QKN_OPTICS_ISA_H
/* Compile what stands between QKN_ISA_BEGIN("avx2") and QKN_ISA_END for that instruction set. */
#define QKN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define QKN_ISA_BEGIN(features) QKN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define QKN_ISA_END QKN_PRAGMA(clang attribute pop)
#else
#define QKN_ISA_BEGIN(features) QKN_PRAGMA(GCC push_options) QKN_PRAGMA(GCC target(features))
#define QKN_ISA_END QKN_PRAGMA(GCC pop_options)
#endif
#endif
