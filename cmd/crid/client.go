package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criClient is a connection to a running crid, as kubelet has one.
type criClient struct {
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

// dialCRI connects to the crid of c. That none runs is said in plain words.
func dialCRI(ctx context.Context, c Config) (*criClient, error) {
	err := tryConnect(ctx, c.Socket)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no crid serves %s; is it running, and with this configuration?", c.Socket)
	default:
		return nil, fmt.Errorf("connect to crid: %w", err)
	}
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to crid: %w", err)
	}
	return &criClient{conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}, nil
}

func (c *criClient) close() { _ = c.conn.Close() }

// plainStatus is a gRPC error without gRPC's frame around it.
func plainStatus(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(status.Convert(err).Message())
}
