//go:build linux

// Bench measures culvert beside other ways to carry TCP from one place to another, over loopback and
// over emulated paths, and prints a Markdown table:
//
//	go run ./test/bench                                  culvert, and the other programs that are installed
//	go run ./test/bench -rounds 1 -only bulk             a quick look at one kind of load
//	go run ./test/bench -builds before/,after/           compare two builds of culvert
//	go run ./test/bench -builds before/,after/ -quick    the same in about two minutes
//
// A folder of -builds holds both programs:
//
//	go build -o before/ ./cmd/culvert-client ./cmd/culvert-server
//
// There may be any number of them. Each cell but those of the first build ends with its ratio to the first
// build: ×1.10 is a tenth more. Only the builds are measured; -others adds the usual contenders.
// -rounds, -window and -only choose how often, for how long and which loads.
//
// The contenders take turns, and each round begins with another one, so that the noise of the machine hits
// all of them alike. Every cell is the median of all rounds with the lowest and the highest in brackets: a
// ratio means something when these ranges hardly overlap. The applications and the target are in this
// program; each contender's two agents are processes of their own, whose CPU time and memory are read
// from /proc.
//
// "relays" are two processes that only pass bytes on within the kernel (splice): what any pair of
// agents could reach at best. chisel, frps and frpc, and haproxy are measured where they are on the
// PATH, and left out with a notice where not.
package main
