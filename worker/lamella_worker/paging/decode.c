/* Attention of decode rows over pages, one query per sequence, summed in float32.

   Compiled for one geometry (attention_native.py): GROUP query heads share a key head, keys have
   K_DIM and values V_DIM elements; with BF16 queries, pages and results are bfloat16, else float32.
   Keys and values are read once, where they lie, a tile of keys and then its values, which are
   summed relative to the largest score so far. A sequence's result depends on its own keys alone,
   taken in their order and in tiles from its first on, so it has the same bits whatever else is in
   the batch and wherever its blocks are. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined BF16 && defined __AVX512BF16__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __AVX512F__
#define LANES 16 /* of a vector */
#else
#define LANES 8
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));

INLINE vec choose(ivec mask, vec yes, vec no) {
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

INLINE vec take(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void put(float *p, vec x) { memcpy(p, &x, sizeof x); }

/* A piece is a vector's bytes of a row: LANES floats, or twice as many bfloat16, which become two
   vectors, of the elements at even places and of those at odd ones. */
#ifdef BF16
typedef uint16_t element;
typedef uvec piece;
#define HALVES 2
INLINE vec half(piece x, int odd) { return (vec)(odd ? x & 0xffff0000 : x << 16); }
#else
typedef float element;
typedef vec piece;
#define HALVES 1
INLINE vec half(piece x, int odd) { return x; }
#endif
#define PIECE (LANES * HALVES)
#define PIECES(dim) (((dim) + PIECE - 1) / PIECE)
#define PART(dim, c) ((dim) - PIECE * (c) < PIECE ? (dim) - PIECE * (c) : PIECE)

/* Keys that are scored before their values are read: the bytes of both fit the first cache. */
#define ROWS (8192 / (int)sizeof(element) / K_DIM / LANES * LANES)
#define TILE (ROWS < LANES ? LANES : ROWS < 128 ? ROWS : 128)

/* `n` elements; the rest are zeros. */
INLINE piece load(const element *p, int n) {
    piece x = {0};
    memcpy(&x, p, n * sizeof *p);
    return x;
}

/* sum + a b; which elements' products a lane of it has is of no matter, as all are added up. */
INLINE vec times(vec sum, piece a, piece b) {
#if defined BF16 && defined __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    for (int h = 0; h < HALVES; h++) sum += half(a, h) * half(b, h);
    return sum;
#endif
}

INLINE void store(element *p, const vec x[HALVES], int n) {
#ifdef BF16
    uvec bits[2];
    for (int h = 0; h < 2; h++) {
        uvec u = (uvec)x[h];
        u += 0x7fff + ((u >> 16) & 1); /* to nearest, ties to even */
        bits[h] = (uvec)choose(x[h] == x[h], (vec)u, (vec)((uvec){0} + 0x7fc00000));
    }
    const uvec both = bits[0] >> 16 | (bits[1] & 0xffff0000);
    memcpy(p, &both, n * sizeof *p);
#else
    memcpy(p, x, n * sizeof *p);
#endif
}

/* Neighbours' sums, those of a in some lanes and those of b in others: four (of eight lanes: three)
   rounds of it over as many vectors as there are lanes leave in lane i the sum of vector i. */
#if LANES == 16
#define BY1 (ivec){0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}, 2
#define BY2 (ivec){0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29}, 2
#define BY4 (ivec){0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27}, 4
#else
#define BY1 (ivec){0, 8, 1, 9, 4, 12, 5, 13}, 2
#define BY2 (ivec){0, 1, 8, 9, 4, 5, 12, 13}, 2
#define BY4 (ivec){0, 1, 2, 3, 8, 9, 10, 11}, 4
#endif
INLINE vec fold(vec a, vec b, ivec low, int apart) {
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + apart);
}

/* Element i of the result is the sum of vector i's elements, of LANES vectors, folded BY1 already. */
INLINE vec sums(vec a[LANES / 2]) {
    for (int i = 0; i < LANES / 4; i++) a[i] = fold(a[2 * i], a[2 * i + 1], BY2);
    for (int i = 0; i < LANES / 8; i++) a[i] = fold(a[2 * i], a[2 * i + 1], BY4);
    return LANES == 16 ? fold(a[0], a[1], BY4) : a[0];
}

/* Of two that are not ordered, b. */
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

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

/* A walk over a sequence's rows in the pool, at most LANES neighbours at a step. */
typedef struct {
    const int64_t *run, *end;
    int64_t row; /* of this run, the next */
} walk;

/* Neighbours from pool row *first on, no more than `most`; 0 at the end. */
INLINE int64_t step(walk *w, int64_t most, int64_t *first) {
    if (w->run == w->end) return 0;
    const int64_t left = w->run[1] - w->row;
    int64_t n = left < LANES ? left : LANES;
    n = n < most ? n : most;
    *first = w->run[0] + w->row;
    w->row += n;
    if (n == left) w->run += 2, w->row = 0;
    return n;
}

/* A row will be read a tile from now: into the second cache, as the first has room for little more
   than the tile. */
INLINE void ask(const element *row, int dim) {
    for (int i = 0; i < dim; i += 64 / (int)sizeof *row) __builtin_prefetch(row + i, 0, 2);
}

/* Scores of n neighbouring keys, into one row per query head, and the largest in each lane.
   Meanwhile it asks for `more` rows of values. */
INLINE void score(const element *keys, int64_t n, const element *values, int64_t more,
                  piece query[GROUP][PIECES(K_DIM)], float scale, float cap,
                  float scores[GROUP][TILE + LANES], int64_t at, vec most[GROUP]) {
    vec parts[GROUP][LANES / 2];
    for (int j = 0; j < LANES; j += 2) {
        vec pair[GROUP][2] = {0};
        for (int i = 0; i < 2; i++) {
            const element *key = keys + (j + i < n ? j + i : 0) * K_DIM;
            if (j + i < more) ask(values + (j + i) * V_DIM, V_DIM);
            for (int c = 0; c < PIECES(K_DIM); c++) {
                const piece x = load(key + PIECE * c, PART(K_DIM, c));
                for (int g = 0; g < GROUP; g++) pair[g][i] = times(pair[g][i], x, query[g][c]);
            }
        }
        for (int g = 0; g < GROUP; g++) parts[g][j / 2] = fold(pair[g][0], pair[g][1], BY1);
    }
    for (int g = 0; g < GROUP; g++) {
        vec x = sums(parts[g]) * scale;
        if (cap > 0) x = capped(x, cap);
        most[g] = larger(x, most[g]);
        put(&scores[g][at], x);
    }
}

/* What a query head has of the keys so far, relative to e^top. */
typedef struct {
    float top; /* the largest score */
    vec total; /* of the weights */
    vec mixed[PIECES(V_DIM)][HALVES]; /* the sum of weights times values */
} state;

/* Weights in place of n scores, of which `most` has the largest. */
INLINE void weigh(float *scores, int64_t n, vec most, state *so_far) {
    put(scores + n, (vec){0} - INFINITY);
    float top = so_far->top;
    for (int j = 0; j < LANES; j++) top = most[j] > top ? most[j] : top;
    if (top > so_far->top) {
        const vec less = exponential((vec){0} + (so_far->top - top));
        so_far->top = top;
        so_far->total *= less;
        for (int c = 0; c < PIECES(V_DIM); c++)
            for (int h = 0; h < HALVES; h++) so_far->mixed[c][h] *= less;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        const vec x = exponential(take(scores + i) - top);
        so_far->total += x;
        put(scores + i, x);
    }
}

/* Adds n neighbouring values times their weights. Meanwhile it asks for `more` rows of keys. The sums
   of a few columns of pieces at a time are in registers. */
#define FITTING (32 / GROUP / HALVES)
#define COLUMNS (FITTING < 1 ? 1 : FITTING < PIECES(V_DIM) ? FITTING : PIECES(V_DIM))
INLINE void mix(const element *values, int64_t n, float weights[GROUP][TILE + LANES], int64_t at,
                state so_far[GROUP], const element *keys, int64_t more) {
    for (int left = 0; left < PIECES(V_DIM); left += COLUMNS) {
        vec sum[COLUMNS][GROUP][HALVES];
#define EACH                                                               \
    for (int c = 0; c < COLUMNS && left + c < PIECES(V_DIM); c++)          \
        for (int g = 0; g < GROUP; g++)                                    \
            for (int h = 0; h < HALVES; h++)
        EACH sum[c][g][h] = so_far[g].mixed[left + c][h];
        for (int64_t j = 0; j < n; j++) {
            if (left == 0 && j < more) ask(keys + j * K_DIM, K_DIM);
            piece x[COLUMNS];
            for (int c = 0; c < COLUMNS && left + c < PIECES(V_DIM); c++)
                x[c] = load(values + j * V_DIM + PIECE * (left + c), PART(V_DIM, left + c));
            EACH sum[c][g][h] += half(x[c], h) * weights[g][at + j];
        }
        EACH so_far[g].mixed[left + c][h] = sum[c][g][h];
    }
}

/* One sequence and key head: `runs` are its own, q and out its own row at this head's first query
   head, k and v this head's pages. */
INLINE void attend(const element *q, const element *k, const element *v, element *out,
                   const int64_t *runs, int64_t count, float scale, float cap) {
    piece query[GROUP][PIECES(K_DIM)];
    state so_far[GROUP];
    float scores[GROUP][TILE + LANES];
    for (int g = 0; g < GROUP; g++) {
        for (int c = 0; c < PIECES(K_DIM); c++) query[g][c] = 
                load(q + g * K_DIM + PIECE * c, PART(K_DIM, c));
        so_far[g] = (state){-INFINITY};
    }
    walk keys = {runs, runs + 2 * count, 0};
    while (keys.run != keys.end) {
        walk values = keys;
        int64_t first = 0, next = 0, n, tile = 0;
        /* Within a run the processor sees for itself what comes next, and asking costs time. */
        const int guessed = keys.run[1] - keys.row >= 2 * TILE;
        vec most[GROUP];
        for (int g = 0; g < GROUP; g++) most[g] = (vec){0} - INFINITY;
        for (; (n = step(&keys, TILE - tile, &first)); tile += n)
            score(k + first * K_DIM, n, v + first * V_DIM, guessed ? 0 : n, query, scale, cap,
                  scores, tile, most);
        for (int g = 0; g < GROUP; g++) weigh(scores[g], tile, most[g], &so_far[g]);
        walk ahead = keys;
        for (int64_t at = 0; (n = step(&values, tile - at, &first)); at += n) {
            const int64_t more = guessed ? 0 : step(&ahead, LANES, &next);
            mix(v + first * V_DIM, n, scores, at, so_far, k + next * K_DIM, more);
        }
    }
    for (int g = 0; g < GROUP; g++) {
        float whole = 0;
        for (int j = 0; j < LANES; j++) whole += so_far[g].total[j];
        for (int c = 0; c < PIECES(V_DIM); c++) {
            for (int h = 0; h < HALVES; h++) so_far[g].mixed[c][h] /= whole;
            store(out + g * V_DIM + PIECE * c, so_far[g].mixed[c], PART(V_DIM, c));
        }
    }
}

#ifndef NAME
#define NAME decode
#endif
/* Sequence s has its query in row rows[s] of q (`q_stride` elements from row to row, heads side by
   side) and its result in that row of out [.., heads * V_DIM]. Its keys are the runs
   [spans[s], spans[s + 1]); a run is (first pool row, rows). k and v are [kv_heads, pool_rows,
   dim]. cap 0: none. */
void NAME(const element *q, int64_t q_stride, const element *k, const element *v, element *out,
          int64_t kv_heads, int64_t pool_rows, int64_t sequences, const int64_t *rows,
          const int64_t *spans, const int64_t *runs, float scale, float cap, int64_t threads) {
    (void)threads; /* without OpenMP */
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t head = 0; head < kv_heads; head++)
            attend(q + rows[s] * q_stride + head * GROUP * K_DIM, k + head * pool_rows * K_DIM,
                   v + head * pool_rows * V_DIM,
                   out + (rows[s] * kv_heads + head) * GROUP * V_DIM, runs + 2 * spans[s],
                   spans[s + 1] - spans[s], scale, cap);
}
