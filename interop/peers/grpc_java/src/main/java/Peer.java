import io.grpc.ManagedChannelBuilder;
import io.grpc.Server;
import io.grpc.ServerInterceptors;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.NettyServerBuilder;
import io.grpc.testing.integration.AbstractInteropTest;
import io.grpc.testing.integration.TestServiceImpl;
import java.net.InetSocketAddress;
import java.util.Arrays;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/** The client and the server of grpc-java's own interop suite, told what to do as the other peers are told. */
public final class Peer {
  private static final int MESSAGE_LIMIT = 80 << 20;
  private static final int METADATA_LIMIT = 128 << 10;
  private static final int CASE_SECONDS = 60; // a case that takes longer than this hangs

  /** What the server of the suite cannot do, as the runner wants to be told. */
  private static final Map<String, String> SERVER_CANNOT =
      Map.of(
          "records", "the interop server of grpc-java keeps no records of its calls",
          "headers_without_message", "the interop server of grpc-java never ends a response without messages");

  private interface Case {
    void play(Suite suite) throws Exception;
  }

  private static final Map<String, Case> CLIENT_CASES = new LinkedHashMap<>();

  static {
    CLIENT_CASES.put("empty_unary", Suite::emptyUnary);
    CLIENT_CASES.put("large_unary", Suite::largeUnary);
    // Without the probe, whose answer differs from server to server: no server has to look at the flag.
    CLIENT_CASES.put("client_compressed_unary", suite -> suite.clientCompressedUnary(false));
    CLIENT_CASES.put("client_compressed_streaming", suite -> suite.clientCompressedStreaming(false));
    CLIENT_CASES.put("server_compressed_unary", Suite::serverCompressedUnary);
    CLIENT_CASES.put("server_compressed_streaming", Suite::serverCompressedStreaming);
    CLIENT_CASES.put("client_streaming", Suite::clientStreaming);
    CLIENT_CASES.put("server_streaming", Suite::serverStreaming);
    CLIENT_CASES.put("ping_pong", Suite::pingPong);
    CLIENT_CASES.put("empty_stream", Suite::emptyStream);
    CLIENT_CASES.put("custom_metadata", Suite::customMetadata);
    CLIENT_CASES.put("status_code_and_message", Suite::statusCodeAndMessage);
    CLIENT_CASES.put("special_status_message", Suite::specialStatusMessage);
    CLIENT_CASES.put("unimplemented_method", Suite::unimplementedMethod);
    CLIENT_CASES.put("unimplemented_service", Suite::unimplementedService);
    CLIENT_CASES.put("cancel_after_begin", Suite::cancelAfterBegin);
    CLIENT_CASES.put("cancel_after_first_response", Suite::cancelAfterFirstResponse);
    CLIENT_CASES.put("timeout_on_sleeping_server", Suite::timeoutOnSleepingServer);
  }

  /** The cases, on a channel to the target; the server is another process, so nothing of it is looked at. */
  private static final class Suite extends AbstractInteropTest {
    private final String target;

    Suite(String target) {
      this.target = target;
    }

    @Override
    protected ManagedChannelBuilder<?> createChannelBuilder() {
      return NettyChannelBuilder.forTarget(target).usePlaintext().maxInboundMessageSize(MESSAGE_LIMIT);
    }

    @Override
    protected boolean metricsExpected() {
      return false;
    }
  }

  private static void report(String name, long startNanos, String key, String json) {
    double seconds = (System.nanoTime() - startNanos) / 1e9;
    System.out.printf("{\"case\": \"%s\", \"seconds\": %.3f, \"%s\": %s}%n", name, seconds, key, json);
  }

  private static String quoted(String text) {
    StringBuilder json = new StringBuilder("\"");
    for (char letter : text.toCharArray()) {
      boolean plain = letter >= ' ' && letter < 0x7f && letter != '"' && letter != '\\';
      json.append(plain ? String.valueOf(letter) : String.format("\\u%04x", (int) letter));
    }
    return json.append('"').toString();
  }

  private static void client(String target, String[] cases) {
    ScheduledExecutorService watchdog = Executors.newSingleThreadScheduledExecutor();
    for (String name : cases) {
      long start = System.nanoTime();
      Case known = CLIENT_CASES.get(name);
      if (known == null) {
        report(name, start, "cannot", quoted("the interop client of grpc-java does not have it"));
        continue;
      }
      Runnable hangs =
          () -> {
            report(name, start, "failure", quoted("hangs"));
            Runtime.getRuntime().halt(1);
          };
      var alarm = watchdog.schedule(hangs, CASE_SECONDS, TimeUnit.SECONDS);
      Suite suite = new Suite(target);
      try {
        suite.setUp();
        known.play(suite);
        suite.tearDown();
        alarm.cancel(false);
        report(name, start, "passed", "true");
      } catch (Throwable failure) { // assertions are errors
        alarm.cancel(false);
        String text = failure.toString().replaceAll("@[0-9a-f]+", "@…").replaceAll("\\s*\n\\s*", " / ");
        report(name, start, "failure", quoted(text));
      }
    }
    System.out.flush();
    System.exit(0);
  }

  private static void serve() throws Exception {
    ScheduledExecutorService executor = Executors.newScheduledThreadPool(2);
    Server server =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
            .maxInboundMessageSize(MESSAGE_LIMIT)
            .maxInboundMetadataSize(METADATA_LIMIT)
            .addService(ServerInterceptors.intercept(new TestServiceImpl(executor), TestServiceImpl.interceptors()))
            .build()
            .start();
    Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    SERVER_CANNOT.forEach((name, reason) -> System.out.printf("cannot %s: %s%n", name, reason));
    System.out.printf("listening on 127.0.0.1:%d%n", server.getPort());
    System.out.flush();
    server.awaitTermination();
  }

  /** `server`, or `client --target HOST:PORT --cases A,B`; other options are of no use here. */
  public static void main(String[] arguments) throws Exception {
    if (arguments[0].equals("server")) {
      serve();
      return;
    }
    Map<String, String> options = new LinkedHashMap<>();
    Iterator<String> words = Arrays.asList(arguments).listIterator(1);
    while (words.hasNext()) {
      options.put(words.next(), words.next());
    }
    client(options.get("--target"), options.get("--cases").split(","));
  }
}
