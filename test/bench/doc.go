//go:build linux

// Bench measures culvert beside other ways to carry TCP from one place to another, over loopback and
// over emulated paths, and prints a Markdown table:
//
//	go run ./test/bench                         culvert, and of the others what is installed
//	go run ./test/bench -rounds 1 -only bulk    a quick look at one kind of load
//	go run ./test/bench -builds old/,new/       two builds of culvert, given as folders with both programs
//
// The contenders take turns, so that each sees the same machine, and every cell is the median of all
// rounds with the lowest and the highest in brackets. The applications and the target are in this
// program; each contender's two agents are processes of their own, whose CPU time and memory are read
// from /proc.
//
// "relays" are two processes that only pass bytes on within the kernel (splice): what any pair of
// agents could reach at best. chisel, frps and frpc, and haproxy are measured where they are on the
// PATH, and left out with a notice where not.
package main
