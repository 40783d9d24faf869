package cri

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rpcs is every RPC of the API.
func rpcs() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	services := v1.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			all = append(all, methods.Get(j))
		}
	}
	return all
}

// TestRPCs calls every RPC over gRPC: those of the table answer Unimplemented,
// the others do not, and there are no others in the table.
func TestRPCs(t *testing.T) {
	const known = 43 // of cri-api v0.37
	all := rpcs()
	if len(all) != known {
		t.Errorf("the API has %d RPCs, this test knows %d", len(all), known)
	}
	conn := newTestServer(t, &fakeNode{}).conn
	left := make(map[string]bool)
	for rpc := range unimplemented {
		left[rpc] = true
	}
	for _, rpc := range all {
		name := string(rpc.Name())
		t.Run(name, func(t *testing.T) {
			err := callRPC(t.Context(), conn, rpc)
			_, refused := unimplemented[name]
			if got := status.Code(err) == codes.Unimplemented; got != refused {
				t.Errorf("%s = %v, want Unimplemented: %v", name, err, refused)
			}
		})
		delete(left, name)
	}
	for name := range left {
		t.Errorf("%s is in the table, but not in the API", name)
	}
}

// callRPC sends an empty request and waits for the first answer.
func callRPC(ctx context.Context, conn *grpc.ClientConn, rpc protoreflect.MethodDescriptor) error {
	method := "/" + string(rpc.Parent().FullName()) + "/" + string(rpc.Name())
	req, resp := newMessage(rpc.Input()), newMessage(rpc.Output())
	if !rpc.IsStreamingServer() {
		return conn.Invoke(ctx, method, req, resp)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(resp)
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return t.New().Interface()
}
