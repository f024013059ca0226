package node

// Following returns how many wait for the fill of name.
func (n *Node) Following(name string) int {
	f := n.flights.join(name, false)
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.followers
}
