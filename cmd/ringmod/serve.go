package main

import "github.com/spf13/cobra"

func serveCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "serve",
		Short: "Run a node and a gateway in one process",
		Long: "serve caches Go modules on this machine: it answers the go command, fetches what it\n" +
			"lacks from the upstream, verifies it and keeps it below --data-dir. It is a cluster of\n" +
			"one that other nodes and gateways can join.",
		Example: "  ringmod serve\n" +
			"  ringmod serve --http-addr :8080 --data-dir /var/cache/ringmod --upstream https://mirror.example.com,direct",
	}, parts{node: true, gateway: true})
}

func nodeCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "node",
		Short: "Run a cache node, a member of a cluster",
		Long: "node keeps its share of the cluster's modules below --data-dir and fetches what the\n" +
			"cluster lacks. The first node of a cluster needs no --join; every other one, and every\n" +
			"gateway, names the gossip address of at least one member. Stopping a node with SIGTERM\n" +
			"moves no data: it is expected back.",
		Example: "  ringmod node --node-id n1\n" +
			"  ringmod node --node-id n2 --join 127.0.0.1:8083 --grpc-addr 127.0.0.1:8182 --gossip-addr 127.0.0.1:8183 \\\n" +
			"      --admin-addr 127.0.0.1:8181 --data-dir /var/cache/ringmod-n2",
	}, parts{node: true})
}

func gatewayCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "gateway",
		Short: "Run an HTTP gateway, which answers the go command from a cluster",
		Long: "gateway speaks the GOPROXY protocol to developers and takes every file from the nodes of\n" +
			"its cluster, those of its own --region first. It keeps no files; run as many as you like.\n" +
			"It learns the members by gossip (--join), or from a node (--view-from) where it must not\n" +
			"hold the gossip key.",
		Example: "  ringmod gateway --join 127.0.0.1:8083 --gossip-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0\n" +
			"  ringmod gateway --view-from node.example.com:8082 --region eu --peer-cert gw.pem --peer-key gw-key.pem --peer-ca ca.pem",
	}, parts{gateway: true})
}
