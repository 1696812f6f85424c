import { defineConfig } from "vite";

// Names without digests: each file is sent with `no-store`, and what is committed changes in place.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../services/teacher/console",
    emptyOutDir: true,
    target: "es2023",
    assetsDir: ".",
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        entryFileNames: "console.js",
        chunkFileNames: "[name].js",
        assetFileNames: "console[extname]",
      },
    },
  },
});
