import { useEffect, useRef, useState } from "preact/hooks";

interface Props {
  problem: string;
  onToken: (token: string) => void;
}

export function Login({ problem, onToken }: Props) {
  const [token, setToken] = useState("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <main class="login">
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          if (token.trim() !== "") onToken(token);
        }}
      >
        <h1>Preceptor console</h1>
        <label for="token">Your team's token</label>
        <input
          ref={field}
          id="token"
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          value={token}
          aria-describedby="token-note"
          aria-invalid={problem !== ""}
          onInput={(event) => setToken(event.currentTarget.value)}
        />
        <p class="problem" role="alert">
          {problem}
        </p>
        <button type="submit">Show</button>
        <p id="token-note" class="hint">
          The one that students show, <code>NAME.SECRET</code>. This tab keeps it until it is closed, and sends it to
          this service only. You see your own team; operators see all.
        </p>
      </form>
    </main>
  );
}
