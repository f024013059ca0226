package upstream

import "context"

type bundleKey struct{}

// WithBundle returns a context in which b, the files of modules and checksum databases
// that somebody has brought along, is all the world outside that a Client
// knows: it is asked in place of the list and of the checksum databases, also where
// the list is "off". What it gives is verified as what anybody gives.
func WithBundle(ctx context.Context, b Source) context.Context {
	return context.WithValue(ctx, bundleKey{}, b)
}

// HasBundle tells whether a context is one of WithBundle.
func HasBundle(ctx context.Context) bool { return bundleOf(ctx) != nil }

func bundleOf(ctx context.Context) Source {
	b, _ := ctx.Value(bundleKey{}).(Source)
	return b
}
