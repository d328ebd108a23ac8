"""Small programs of every kind that other projects' objects hold, each with what it returns when it is run."""

from __future__ import annotations

from dataclasses import dataclass

HELPERS = r"""
#define noinline __attribute__((noinline))
typedef long (*callback)();
static long (*loop)(__u32 count, void *body, void *context, __u64 flags) = (void *)181;
static long (*spin_lock)(void *lock) = (void *)93;
static long (*spin_unlock)(void *lock) = (void *)94;
static long (*timer_init)(void *timer, void *map, __u64 flags) = (void *)169;
static long (*timer_set_callback)(void *timer, void *body) = (void *)170;
static long (*trace_printk)(const char *format, __u32 size, ...) = (void *)6;
"""


@dataclass(frozen=True)
class Snippet:
    """A source and the values that its program `tc_main` returns, run after run; `maps` are those it refers to."""

    source: str
    returns: tuple[int, ...]
    maps: tuple[str, ...] = ()
    subprograms: tuple[str, ...] = ()


MAIN = '__section("tc") int tc_main(struct __sk_buff *skb)'

SNIPPETS = {
    "read-only constant": Snippet(
        f"const volatile __u32 ANSWER = 42; {MAIN} {{ return ANSWER; }}", (42,), (".rodata",)
    ),
    "constant in .rodata.config": Snippet(
        f'__section(".rodata.config") const volatile __u32 MTU = 1500; {MAIN} {{ return MTU; }}',
        (1500,),
        (".rodata.config",),
    ),
    "table in .rodata": Snippet(
        f"static const __u32 table[5] = {{ 3, 5, 7, 11, 13 }}; {MAIN} {{ return table[skb->len & 3]; }}",
        (3,),
        (".rodata",),
    ),
    "variable in .data": Snippet(f"volatile __u32 counter = 5; {MAIN} {{ return ++counter; }}", (6, 7), (".data",)),
    "static variable": Snippet(
        f"static volatile __u32 first = 1, second = 5; {MAIN} {{ first++; return ++second; }}", (6, 7), (".data",)
    ),
    "variable in a section of its own": Snippet(
        f'__section(".data.own") volatile __u32 counter = 5; {MAIN} {{ return ++counter; }}', (6, 7), (".data.own",)
    ),
    "bytes of a structure": Snippet(
        "struct config { __u8 one; __u8 two; __u16 three; __u64 four; };"
        "volatile struct config config = { 1, 2, 3, 4 };"
        f"{MAIN} {{ return config.two * 100 + config.three * 10 + config.four; }}",
        (234,),
        (".data",),
    ),
    "variable in .bss": Snippet(f"volatile __u64 hits; {MAIN} {{ return ++hits; }}", (1, 2), (".bss",)),
    "a megabyte of .bss": Snippet(
        f"volatile __u8 many[1 << 20]; {MAIN} {{ return ++many[(skb->len << 4) & 0xfffff]; }}", (1, 2), (".bss",)
    ),
    "key in a variable": Snippet(
        "struct { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 4); }"
        ' numbers __section(".maps"); __u32 key = 9;'
        f"{MAIN} {{ return map_lookup_elem(&numbers, &key) ? 1 : 2; }}",
        (2,),
        ("numbers", ".data"),
    ),
    "address of a variable handed to a function": Snippet(
        "__u32 counter = 5; static noinline int bump(__u32 *what) { return ++*what; }"
        f"{MAIN} {{ return bump(&counter); }}",
        (6, 7),
        (".data",),
        ("bump",),
    ),
    "string": Snippet(
        "struct { __uint(type, 1); __type(key, char[16]); __type(value, __u64); __uint(max_entries, 4); }"
        ' names __section(".maps");'
        f'{MAIN} {{ return map_lookup_elem(&names, "sixteen letters") ? 1 : 2; }}',
        (2,),
        ("names", ".rodata.str1.1"),
    ),
    "static function in .text": Snippet(
        f"static noinline int twice(int x) {{ return 2 * x; }} {MAIN} {{ return twice(skb->len); }}",
        (128,),
        subprograms=("twice",),
    ),
    "global function in .text": Snippet(
        f"noinline int twice(int x) {{ return 2 * x; }} {MAIN} {{ return twice(skb->len); }}",
        (128,),
        subprograms=("twice",),
    ),
    "static function in the program's section": Snippet(
        '__section("tc") static noinline int twice(int x) { return 2 * x; }'
        f"{MAIN} {{ return twice(skb->len) + twice(1); }}",
        (130,),
        subprograms=("twice",),
    ),
    "function in a section without a meaning": Snippet(
        f'__section("helpers") noinline int twice(int x) {{ return 2 * x; }} {MAIN} {{ return twice(skb->len); }}',
        (128,),
        subprograms=("twice",),
    ),
    "functions that call each other": Snippet(
        "volatile __u32 counter = 5;"
        "static noinline int inner(int x) { return x + counter++; }"
        "noinline int outer(int x) { return inner(x) + inner(x); }"
        f"{MAIN} {{ return outer(skb->len) + inner(1); }}",
        (64 + 5 + 64 + 6 + 1 + 7,),
        (".data",),
        ("inner", "outer"),
    ),
    "function as an argument": Snippet(
        "static long count(__u32 index, __u32 *sum) { *sum += index; return 0; }"
        f"{MAIN} {{ __u32 sum = 0; loop(5, count, &sum, 0); return sum; }}",
        (10,),
        subprograms=("count",),
    ),
    "spin lock": Snippet(
        "struct bpf_spin_lock { __u32 val; }; struct value { struct bpf_spin_lock lock; __u32 number; };"
        "struct { __uint(type, 2); __type(key, __u32); __type(value, struct value); __uint(max_entries, 1); }"
        ' locked __section(".maps");'
        f"{MAIN} {{ __u32 key = 0, number; struct value *v = map_lookup_elem(&locked, &key); if (!v) return 99;"
        " spin_lock(&v->lock); number = ++v->number; spin_unlock(&v->lock); return number; }",
        (1, 2),
        ("locked",),
    ),
    "spin lock in a variable": Snippet(
        "struct bpf_spin_lock { __u32 val; }; struct bpf_spin_lock lock; volatile __u32 number;"
        f"{MAIN} {{ __u32 now; spin_lock(&lock); now = ++number; spin_unlock(&lock); return now; }}",
        (1, 2),
        (".bss",),
    ),
    "timer": Snippet(
        "struct bpf_timer { __u64 opaque[2]; } __attribute__((aligned(8)));"
        "struct value { struct bpf_timer timer; __u32 number; };"
        "struct { __uint(type, 2); __type(key, __u32); __type(value, struct value); __uint(max_entries, 1); }"
        ' timed __section(".maps");'
        "static int expired(void *map, __u32 *key, struct value *v) { v->number++; return 0; }"
        f"{MAIN} {{ __u32 key = 0; struct value *v = map_lookup_elem(&timed, &key); if (!v) return 99;"
        " if (timer_init(&v->timer, &timed, 1)) return 98; return timer_set_callback(&v->timer, expired); }",
        (0, 98),
        ("timed",),
        ("expired",),
    ),
    "maps of libbpf's old kind": Snippet(
        "struct bpf_map_def { __u32 type, key_size, value_size, max_entries, map_flags; };"
        'struct bpf_map_def __section("maps") first = { 1, 4, 8, 16, 1 };'
        'struct bpf_map_def __section("maps") second = { 2, 4, 8, 16, 0 };'
        f"{MAIN} {{ __u32 key = 3;"
        " return map_lookup_elem(&first, &key) ? 1 : map_lookup_elem(&second, &key) ? 2 : 3; }",
        (2,),
        ("first", "second"),
    ),
    "map attribute beyond the usual": Snippet(
        "struct { __uint(type, 30); __type(value, __u32); __uint(max_entries, 100); __uint(map_extra, 3); }"
        ' bloom __section(".maps"); static long (*peek)(void *map, void *value) = (void *)89;'
        f"{MAIN} {{ __u32 value = 3; return peek(&bloom, &value) ? 1 : 2; }}",
        (1,),
        ("bloom",),
    ),
    "map that takes the pin's place": Snippet(
        "struct { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 1);"
        ' __uint(pinning, 16); } replaced __section(".maps");'
        f"{MAIN} {{ __u32 key = 0; __u64 *v = map_lookup_elem(&replaced, &key); return v ? ++*v : 9; }}",
        (1, 2),
        ("replaced",),
    ),
}
