//go:build race

package sim

// raced says that the race detector looks on, which makes a seed ten times as long.
const raced = true
