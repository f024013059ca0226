package main

import (
	"context"
	"net/http"

	"github.com/ringmod/ringmod/gateway/cluster"
	"github.com/ringmod/ringmod/gateway/hook"
	"github.com/ringmod/ringmod/internal/refresh"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// hooks listens to code hosts, if there is a secret. The node in this process passes on
// what they tell, else any other.
func (a *assembly) hooks(nodes *cluster.Cluster) (http.Handler, error) {
	if a.hookSecretFile == "" {
		return nil, nil //nolint:nilnil // nobody listens
	}
	secrets, err := hook.OpenSecrets(a.hookSecretFile, a.log)
	if err != nil {
		return nil, usagef("--hook-secret-file: %w", err)
	}
	give := nodes.Refresh
	if a.operator != nil {
		give = func(ctx context.Context, s refresh.Subject) error {
			req := &ringmodv1.RefreshRequest{Subject: &ringmodv1.RefreshRequest_Prefix{Prefix: s.Path}}
			_, err := a.operator.Refresh(ctx, req)
			return err
		}
	}
	return hook.New(hook.Config{Secrets: secrets, Refresh: give, Logger: a.log}), nil
}
