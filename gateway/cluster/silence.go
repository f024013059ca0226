package cluster

import "context"

// check asks those of g how they are who were not asked yet.
func (s *search) check(ctx context.Context, g group) {
	if s.checks == nil {
		s.checks = make(map[string]<-chan bool)
	}
	for _, n := range g.without(s.bad).ranks {
		if s.checks[n.id] != nil {
			continue
		}
		answer := make(chan bool, 1)
		s.checks[n.id] = answer
		go func() {
			var err error
			ok := false
			defer func() { answer <- ok }()
			defer s.guard(ctx, &err)
			ok = s.cfg.Peers.Answers(ctx, n.id)
		}()
	}
}

// answers tells whether a node was found to be silent. Who was well once is taken for
// well.
func (s *search) answers(ctx context.Context, id string) bool {
	check := s.checks[id]
	if check == nil {
		return true
	}
	delete(s.checks, id)
	select {
	case ok := <-check:
		return ok
	case <-ctx.Done():
		return true // whoever is asked next says so
	}
}
