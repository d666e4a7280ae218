/* Attention of decode rows over pages, one query per sequence, in float32.

   Compiled for one geometry (attention_native.py): GROUP query heads share a key head, keys have
   K_DIM and values V_DIM elements; with BF16 queries, pages and results are bfloat16, else float32.
   Keys and values are read once, where they lie. A sequence's result depends on its own keys alone,
   taken in their order, so it has the same bits whatever else is in the batch and wherever its
   blocks are. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t half __attribute__((vector_size(32)));

INLINE vec choose(ivec mask, vec yes, vec no) {
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

INLINE vec take(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void put(float *p, vec x) { memcpy(p, &x, sizeof x); }

#ifdef BF16
typedef uint16_t element;
#else
typedef float element;
#endif

/* `n` elements, at most 16; the rest are zeros. */
INLINE vec load(const element *p, int n) {
#ifdef BF16
    half bits = {0};
    memcpy(&bits, p, n * sizeof *p);
    return (vec)(__builtin_convertvector(bits, uvec) << 16);
#else
    vec x = {0};
    memcpy(&x, p, n * sizeof *p);
    return x;
#endif
}

INLINE void store(element *p, vec x, int n) {
#ifdef BF16
    uvec u = (uvec)x;
    u += 0x7fff + ((u >> 16) & 1); /* to nearest, ties to even */
    u = (uvec)choose(x == x, (vec)u, (vec)((uvec){0} + 0x7fc00000));
    half bits = __builtin_convertvector(u >> 16, half);
    memcpy(p, &bits, n * sizeof *p);
#else
    memcpy(p, &x, n * sizeof *p);
#endif
}

/* Vectors of a row of `dim` elements, and elements of its vector c: a constant in most geometries,
   and in the others once the loops are unrolled. */
#define VECS(dim) (((dim) + 15) / 16)
#define PART(dim, c) ((dim) % 16 && (c) == (dim) / 16 ? (dim) % 16 : 16)

/* Element i of the result is the sum of a[i]'s elements. */
INLINE vec sums(vec a[16]) {
    const ivec by1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
    const ivec by2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
    const ivec by4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
    const ivec by8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
#define FOLD(pairs, low, apart)                                \
    for (int i = 0; i < pairs; i++)                            \
        a[i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], low) + \
               __builtin_shuffle(a[2 * i], a[2 * i + 1], low + apart);
    FOLD(8, by1, 1)
    FOLD(4, by2, 2)
    FOLD(2, by4, 4)
    FOLD(1, by8, 8)
    return a[0];
}

/* e^x for x <= 0, to about 1e-7 of it, 0 below -87; not a number stays that. The polynomial is
   that of Cephes' expf. */
INLINE vec exponential(vec x) {
    ivec power = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec); /* cut towards zero */
    vec n = __builtin_convertvector(power, vec);
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    return choose(x < -87.0f, (vec){0}, (vec)((ivec)y + (power << 23)));
}

INLINE vec capped(vec x, float cap) {
    const ivec sign = (ivec){0} + INT32_MIN;
    vec away = (vec)((ivec)x & ~sign) * (-2.0f / cap);
    vec e = exponential(away);
    vec y = cap * (1.0f - e) / (1.0f + e);
    return (vec)((ivec)y | ((ivec)x & sign));
}

/* Scores of one head's keys into rows of `width` floats, one row per query head. */
INLINE void score(const element *keys, const int64_t *runs, int64_t runs_count,
                  vec query[GROUP][VECS(K_DIM)], float cap, float *scores, int64_t width) {
    for (int64_t run = 0; run < runs_count; run++) {
        const element *first = keys + runs[2 * run] * K_DIM;
        const int64_t count = runs[2 * run + 1];
        const element *next = keys + runs[2 * (run + 1 < runs_count ? run + 1 : run)] * K_DIM;
        for (int64_t i = 0; i < count; i += 16) {
            const int64_t n = count - i < 16 ? count - i : 16;
            vec parts[GROUP][16];
            for (int j = 0; j < 16; j++) {
                const element *key = first + (i + (j < n ? j : 0)) * K_DIM;
                if (i == 0) /* scattered blocks: the processor cannot guess where the next run is */
                    for (int c = 0; c < K_DIM; c += 64 / (int)sizeof *key)
                        __builtin_prefetch(next + j * K_DIM + c);
                for (int c = 0; c < VECS(K_DIM); c++) {
                    const vec x = load(key + 16 * c, PART(K_DIM, c));
                    for (int g = 0; g < GROUP; g++)
                        parts[g][j] = c ? parts[g][j] + x * query[g][c] : x * query[g][c];
                }
            }
            for (int g = 0; g < GROUP; g++) {
                const vec x = sums(parts[g]);
                put(scores + g * width + i, cap > 0 ? capped(x, cap) : x);
            }
        }
        scores += count;
    }
}

/* Weights in place of scores, not yet divided by their sum, which is returned. */
INLINE float weigh(float *scores, int64_t length) {
    put(scores + length, (vec){0} - INFINITY);
    vec most = (vec){0} - INFINITY, total = {0};
    for (int64_t i = 0; i < length; i += 16) {
        const vec x = take(scores + i);
        most = choose(x > most, x, most);
    }
    float top = most[0], sum = 0;
    for (int j = 1; j < 16; j++) top = most[j] > top ? most[j] : top;
    for (int64_t i = 0; i < length; i += 16) {
        const vec x = exponential(take(scores + i) - top);
        total += x;
        put(scores + i, x);
    }
    for (int j = 0; j < 16; j++) sum += total[j];
    return sum;
}

/* One sequence and key head: `runs` are its own, q and out its own row at this head's first query
   head, k and v this head's pages. */
INLINE void attend(const element *q, const element *k, const element *v, element *out,
                   const int64_t *runs, int64_t count, int64_t length, float scale, float cap,
                   float *scratch, int64_t width) {
    vec query[GROUP][VECS(K_DIM)], mixed[GROUP][VECS(V_DIM)];
    float whole[GROUP];
    for (int g = 0; g < GROUP; g++)
        for (int c = 0; c < VECS(K_DIM); c++)
            query[g][c] = load(q + g * K_DIM + 16 * c, PART(K_DIM, c)) * scale;
    score(k, runs, count, query, cap, scratch, width);
    for (int g = 0; g < GROUP; g++) {
        whole[g] = weigh(scratch + g * width, length);
        for (int c = 0; c < VECS(V_DIM); c++) mixed[g][c] = (vec){0};
    }
    const float *weight = scratch;
    for (int64_t run = 0; run < count; run++) {
        const element *value = v + runs[2 * run] * V_DIM;
        const element *next = v + runs[2 * (run + 1 < count ? run + 1 : run)] * V_DIM;
        for (int64_t i = 0; i < runs[2 * run + 1]; i++, weight++, value += V_DIM) {
            if (i < 16)
                for (int c = 0; c < V_DIM; c += 64 / (int)sizeof *value)
                    __builtin_prefetch(next + i * V_DIM + c);
            for (int c = 0; c < VECS(V_DIM); c++) {
                const vec x = load(value + 16 * c, PART(V_DIM, c));
                for (int g = 0; g < GROUP; g++) mixed[g][c] += x * weight[g * width];
            }
        }
    }
    for (int g = 0; g < GROUP; g++)
        for (int c = 0; c < VECS(V_DIM); c++)
            store(out + g * V_DIM + 16 * c, mixed[g][c] / whole[g], PART(V_DIM, c));
}

#ifndef NAME
#define NAME decode
#endif
/* Sequence s has its query in row rows[s] of q (`q_stride` elements from row to row, heads side by
   side) and its result in that row of out [.., heads * V_DIM]. Its keys are the runs
   [spans[s], spans[s + 1]); a run is (first pool row, rows). k and v are [kv_heads, pool_rows,
   dim]. width is the longest sequence + 16, scratch GROUP * width floats per thread. cap 0: none. */
void NAME(const element *q, int64_t q_stride, const element *k, const element *v, element *out,
          int64_t kv_heads, int64_t pool_rows, int64_t sequences, const int64_t *rows,
          const int64_t *lengths, const int64_t *spans, const int64_t *runs, float scale,
          float cap, float *scratch, int64_t width, int64_t threads) {
    (void)threads; /* without OpenMP */
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t head = 0; head < kv_heads; head++)
            attend(q + rows[s] * q_stride + head * GROUP * K_DIM, k + head * pool_rows * K_DIM,
                   v + head * pool_rows * V_DIM,
                   out + (rows[s] * kv_heads + head) * GROUP * V_DIM, runs + 2 * spans[s],
                   spans[s + 1] - spans[s], lengths[s], scale, cap,
                   scratch + omp_get_thread_num() * GROUP * width, width);
}
